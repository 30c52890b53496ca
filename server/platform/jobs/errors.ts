import { AppError } from '../errors.ts'

export const errors = {
  jobNotFound: () =>
    new AppError({ code: 'job_not_found', status: 404, message: 'There is no such job, or it is not yours.' }),
  jobNotRetriable: (state: string) =>
    new AppError({
      code: 'job_not_retriable',
      status: 409,
      message: `Only a dead or cancelled job can be retried; this one is ${state}.`,
      details: { state },
    }),
  jobEnded: (state: string) =>
    new AppError({
      code: 'job_ended',
      status: 409,
      message: `The job has ended already: ${state}.`,
      details: { state },
    }),
}
