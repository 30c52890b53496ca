import { AppError } from '../errors.ts'

export const errors = {
  streamIdle: (idleMs: number) =>
    new AppError({
      code: 'stream_idle',
      status: 408,
      message: `Nothing came for ${idleMs / 1000} s. What was answered holds; open a new call for the rest.`,
    }),
}
