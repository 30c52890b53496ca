import { AppError } from '#platform/errors.ts'

export const errors = {
  /** @param what is wrong, and what would be right: whole sentences */
  badTransform: (what: string) =>
    new AppError({ code: 'bad_transform', status: 400, message: `This transform cannot be made: ${what}` }),
}
