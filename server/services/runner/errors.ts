import { AppError } from '#platform/errors.ts'

export const errors = {
  unknownLanguage: (language: string, known: string[]) =>
    new AppError({
      code: 'unknown_language',
      status: 400,
      message: `There is no language \`${language.slice(0, 40)}\` here. Known: ${known.join(', ')}.`,
      details: { known },
    }),
  emptySource: () => new AppError({ code: 'empty_source', status: 400, message: 'The source is empty.' }),
  sourceOrFiles: () =>
    new AppError({ code: 'source_or_files', status: 400, message: 'Send either `source` or `files`, and not both.' }),
  sourceTooLarge: (bytes: number, limitBytes: number) =>
    new AppError({
      code: 'source_too_large',
      status: 413,
      message: `The source has ${bytes} bytes; at most ${limitBytes} are taken.`,
      details: { bytes, limit_bytes: limitBytes },
    }),
  stdinTooLarge: (bytes: number, limitBytes: number) =>
    new AppError({
      code: 'stdin_too_large',
      status: 413,
      message: `The stdin has ${bytes} bytes; at most ${limitBytes} are taken.`,
      details: { bytes, limit_bytes: limitBytes },
    }),
  invalidText: (field: string) =>
    new AppError({
      code: 'invalid_text',
      status: 400,
      message: `\`${field}\` holds a NUL character or half of a surrogate pair, which no text file can hold.`,
      details: { field },
    }),
  invalidFile: (message: string, details: Record<string, unknown>) =>
    new AppError({ code: 'invalid_file', status: 400, message, details }),
  limitTooHigh: (limit: string, asked: number, max: number) =>
    new AppError({
      code: 'limit_too_high',
      status: 400,
      message: `\`limits.${limit}\` is ${asked}; at most ${max} is given here.`,
      details: { limit, asked, max },
    }),
  runNotFound: () =>
    new AppError({ code: 'run_not_found', status: 404, message: 'There is no such run, or it is not yours.' }),
  tooManyRuns: (limit: number) =>
    new AppError({
      code: 'too_many_runs',
      status: 429,
      message: `You have ${limit} runs waiting already. Try again when some have ended.`,
      details: { limit },
      retryAfterSeconds: 2,
    }),
  queueFull: () =>
    new AppError({
      code: 'queue_full',
      status: 503,
      message: 'The queue of runs is full just now. Nothing was accepted; try again shortly.',
      retryAfterSeconds: 5,
    }),
  sandboxUnavailable: (reason: string) =>
    new AppError({
      code: 'sandbox_unavailable',
      status: 503,
      message: `Programs cannot be run here: ${reason}`,
      retryAfterSeconds: 60,
    }),
  stillQueued: (id: string) =>
    new AppError({
      code: 'still_queued',
      status: 503,
      message: `The run ${id} is accepted but has not ended yet; /api/get_history will show it.`,
      details: { id },
      retryAfterSeconds: 5,
    }),
}
