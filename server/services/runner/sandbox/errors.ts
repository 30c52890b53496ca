/** A fault of the sandbox or its host. The program is not to blame, and the run may be tried again. */
export class SandboxError extends Error {
  readonly code: string
  constructor(code: string, message: string) {
    super(message)
    this.name = 'SandboxError'
    this.code = code
  }
}

/** A request that no sandbox could run. Thrown before anything starts. */
export class InvalidExecution extends Error {
  readonly code: string
  readonly details: Record<string, unknown>
  constructor(code: string, message: string, details: Record<string, unknown> = {}) {
    super(message)
    this.name = 'InvalidExecution'
    this.code = code
    this.details = details
  }
}

export const errors = {
  unavailable: (reason: string) => new SandboxError('sandbox_unavailable', `No program can be run here: ${reason}`),
  setupFailed: (reason: string) => new SandboxError('sandbox_setup_failed', `A box could not be made: ${reason}`),
  boxLost: () => new SandboxError('sandbox_box_lost', 'The box was killed from outside.'),
  filesNotWritten: (reason: string) =>
    new SandboxError('sandbox_files_not_written', `The files could not be put into the box: ${reason}`),
  closed: () => new SandboxError('sandbox_closed', 'The sandbox is closed.'),

  fileName: (name: string, why: string) =>
    new InvalidExecution('invalid_file_name', `The file name ${JSON.stringify(name)} ${why}.`, { name }),
  filesTooLarge: (bytes: number, limitBytes: number) =>
    new InvalidExecution('files_too_large', 'The files and the input do not fit on the disk the limits allow.', {
      bytes,
      limitBytes,
    }),
  argument: (why: string) => new InvalidExecution('invalid_argument', `An argument ${why}.`),
  environment: (name: string) =>
    new InvalidExecution('invalid_environment', `${JSON.stringify(name)} cannot be an environment variable.`, { name }),
  limit: (name: string, why: string) => new InvalidExecution('invalid_limit', `The limit ${name} ${why}.`, { name }),
}
