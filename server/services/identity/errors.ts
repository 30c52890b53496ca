import { AppError } from '#platform/errors.ts'

export const errors = {
  usernameTaken: () => new AppError({ code: 'username_taken', status: 409, message: 'This username is taken.' }),
  emailTaken: () => new AppError({ code: 'email_taken', status: 409, message: 'This email address is taken.' }),
  badUsername: () =>
    new AppError({
      code: 'bad_username',
      status: 400,
      message:
        'A username has 3 to 30 letters, digits, dots, underscores or hyphens and starts with a letter or digit.',
    }),
  badEmail: () =>
    new AppError({ code: 'bad_email', status: 400, message: 'This is not an email address Capstan takes.' }),
  badFullName: (charsMax: number) =>
    new AppError({
      code: 'bad_full_name',
      status: 400,
      message: `A full name has 1 to ${charsMax} characters, none of them a control character or half of a surrogate pair.`,
    }),
  weakPassword: (length: { min: number; max: number }) =>
    new AppError({
      code: 'weak_password',
      status: 400,
      message: `A password has ${length.min} to ${length.max} characters and is not the username.`,
      details: { min_length: length.min, max_length: length.max },
    }),
  registrationClosed: () =>
    new AppError({ code: 'registration_closed', status: 403, message: 'Whoever runs this server makes its accounts.' }),
  invalidCredentials: () =>
    new AppError({ code: 'invalid_credentials', status: 401, message: 'The name or the password is wrong.' }),
  wrongPassword: () => new AppError({ code: 'wrong_password', status: 403, message: 'The current password is wrong.' }),
  accountDisabled: () => new AppError({ code: 'account_disabled', status: 403, message: 'This account is disabled.' }),
  tooManyAttempts: (retryAfterSeconds: number) =>
    new AppError({
      code: 'too_many_attempts',
      status: 429,
      message: `Too many wrong passwords. Try again in ${retryAfterSeconds} s.`,
      retryAfterSeconds,
    }),
  invalidRefreshToken: () =>
    new AppError({
      code: 'invalid_refresh_token',
      status: 401,
      message: 'This refresh token does not work, or no longer. Sign in again.',
    }),
  refreshTokenReused: () =>
    new AppError({
      code: 'refresh_token_reused',
      status: 401,
      message:
        'This refresh token was used before, so somebody else may hold it. The session was ended; sign in again.',
    }),
  crossOrigin: () =>
    new AppError({
      code: 'cross_origin',
      status: 403,
      message: 'A request with a cookie must come from this site. Other sites send `Authorization: Bearer …`.',
    }),
  unknownScope: (scope: string) =>
    new AppError({
      code: 'unknown_scope',
      status: 400,
      message: 'There is no such scope, or an API key of yours may not have it.',
      details: { scope },
    }),
  tooManyApiKeys: (limit: number) =>
    new AppError({
      code: 'too_many_api_keys',
      status: 409,
      message: `A user may have ${limit} API keys. Delete one first.`,
      details: { limit },
    }),
  lastAdmin: () =>
    new AppError({
      code: 'last_admin',
      status: 409,
      message: 'This is the last admin. Make another user admin first.',
    }),
}
