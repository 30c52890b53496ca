import { AppError } from '#platform/errors.ts'

export const errors = {
  amountNotText: () =>
    new AppError({
      code: 'amount_not_text',
      status: 400,
      message: 'An amount is a text of digits in minor units, such as "1050": JSON numbers are not exact past 2^53.',
    }),
  amountNotNumber: () =>
    new AppError({ code: 'amount_not_number', status: 400, message: 'In this contract an amount is a JSON number.' }),
  amountMalformed: () =>
    new AppError({ code: 'amount_malformed', status: 400, message: 'An amount is written in digits only.' }),
  amountZero: () => new AppError({ code: 'amount_zero', status: 400, message: 'The amount is zero.' }),
  amountNegative: () => new AppError({ code: 'amount_negative', status: 400, message: 'The amount is negative.' }),
  amountFractional: () =>
    new AppError({
      code: 'amount_fractional',
      status: 400,
      message: 'The amount is not whole. Amounts count minor units: cents of a dollar, yen.',
    }),
  amountTooLarge: () =>
    new AppError({
      code: 'amount_too_large',
      status: 400,
      message: 'The amount is too large: at most 2^63 - 1, and as a JSON number at most 2^53 - 1.',
    }),
  badId: (field: string) =>
    new AppError({
      code: 'bad_id',
      status: 400,
      message: `\`${field}\` is not the id of an account or transfer, which is a text of digits such as "42".`,
      details: { field },
    }),
  badFloor: () =>
    new AppError({
      code: 'bad_floor',
      status: 400,
      message: 'A floor is a text of digits, zero or below: "-5000" allows an overdraft of 5000 minor units.',
    }),
  overdraftNotYours: () =>
    new AppError({ code: 'overdraft_not_yours', status: 403, message: 'Only admins open accounts with an overdraft.' }),
  badMetadata: () =>
    new AppError({
      code: 'bad_metadata',
      status: 400,
      message: 'Metadata is an object of at most 4096 bytes as JSON, without NUL characters and halves of surrogates.',
    }),
  badText: (field: string) =>
    new AppError({
      code: 'bad_text',
      status: 400,
      message: `\`${field}\` holds a NUL character or half of a surrogate pair.`,
      details: { field },
    }),
  unknownCurrency: () =>
    new AppError({
      code: 'unknown_currency',
      status: 400,
      message: 'This is neither a currency of ISO 4217 nor a unit that was declared here.',
    }),
  unknownField: (field: string) =>
    new AppError({
      code: 'unknown_field',
      status: 400,
      message: `\`${field.slice(0, 100)}\` is not a known field of a transfer.`,
      details: { field: field.slice(0, 100) },
    }),
  notATransfer: () =>
    new AppError({ code: 'not_a_transfer', status: 400, message: 'This line of the batch is not an object.' }),
  badTimeout: (secondsMax: number) =>
    new AppError({
      code: 'bad_timeout',
      status: 400,
      message: `\`timeout_seconds\` is a whole number from 1 to ${secondsMax}, and only a pending transfer has one.`,
      details: { seconds_max: secondsMax },
    }),
  badFlag: (field: string) =>
    new AppError({ code: 'bad_flag', status: 400, message: `\`${field}\` is true or false.`, details: { field } }),
  badLineKey: () =>
    new AppError({
      code: 'bad_line_key',
      status: 400,
      message: 'The `idempotency_key` of a line is 1 to 255 printable ASCII characters.',
    }),
  sameAccount: () =>
    new AppError({ code: 'same_account', status: 400, message: 'A transfer goes from one account to another.' }),
  accountNotFound: (id?: number) =>
    new AppError({
      code: 'account_not_found',
      status: 404,
      message: 'There is no such account.',
      details: id === undefined ? undefined : { account_id: String(id) },
    }),
  foreignAccount: (id: number) =>
    new AppError({
      code: 'foreign_account',
      status: 403,
      message: 'This account is not yours.',
      details: { account_id: String(id) },
    }),
  accountClosed: (id: number) =>
    new AppError({
      code: 'account_closed',
      status: 409,
      message: 'The account is closed.',
      details: { account_id: String(id) },
    }),
  accountExists: () =>
    new AppError({
      code: 'account_exists',
      status: 409,
      message: 'You have an open account of this currency and name already.',
    }),
  tooManyAccounts: (limit: number) =>
    new AppError({
      code: 'too_many_accounts',
      status: 409,
      message: `You have ${limit} accounts already.`,
      details: { limit },
    }),
  accountNotEmpty: () =>
    new AppError({
      code: 'account_not_empty',
      status: 409,
      message: 'The account has a balance or open holds. Move the money, and settle the holds, first.',
    }),
  currencyMismatch: () =>
    new AppError({
      code: 'currency_mismatch',
      status: 400,
      message: 'Both accounts of a transfer have to be of its currency.',
    }),
  insufficientFunds: (id: number) =>
    new AppError({
      code: 'insufficient_funds',
      status: 409,
      message: 'The account has not enough funds.',
      details: { account_id: String(id) },
    }),
  balanceOverflow: (id: number) =>
    new AppError({
      code: 'balance_overflow',
      status: 409,
      message: 'The account cannot hold so much: a balance stays below 2^63.',
      details: { account_id: String(id) },
    }),
  transferNotFound: () =>
    new AppError({
      code: 'transfer_not_found',
      status: 404,
      message: 'There is no such transfer, or it is between accounts of others.',
    }),
  holdNotFound: () =>
    new AppError({
      code: 'hold_not_found',
      status: 404,
      message: 'There is no such pending transfer, or it is between accounts of others.',
    }),
  holdNotYours: () =>
    new AppError({
      code: 'hold_not_yours',
      status: 403,
      message: 'Only whoever is to get the money of a hold, or an admin, may let go of it.',
    }),
  holdAlreadyPosted: () =>
    new AppError({ code: 'hold_already_posted', status: 409, message: 'The hold was posted already.' }),
  holdAlreadyVoided: () =>
    new AppError({ code: 'hold_already_voided', status: 409, message: 'The hold was voided already.' }),
  holdExpired: () => new AppError({ code: 'hold_expired', status: 409, message: 'The hold has expired.' }),
  holdNotDue: () => new AppError({ code: 'hold_not_due', status: 409, message: 'The hold has not expired yet.' }),
  holdAmountExceeded: (amount: bigint) =>
    new AppError({
      code: 'hold_amount_exceeded',
      status: 409,
      message: `The hold is of ${amount}; no more than that can be posted.`,
      details: { amount: String(amount) },
    }),
  alreadyReversed: (byId: number) =>
    new AppError({
      code: 'already_reversed',
      status: 409,
      message: 'The transfer was reversed already.',
      details: { reversal_id: String(byId) },
    }),
  notReversible: () =>
    new AppError({ code: 'not_reversible', status: 409, message: 'A reversal is not reversed: make a transfer.' }),
  reversalNotYours: () =>
    new AppError({
      code: 'reversal_not_yours',
      status: 403,
      message: 'Only whoever got the money of a transfer, or an admin, may reverse it.',
    }),
  chainFailed: (line: number) =>
    new AppError({
      code: 'chain_failed',
      status: 409,
      message: `The transfer at ${line} of this chain was refused, so none of the chain was made.`,
      details: { line },
    }),
  chainOpen: () =>
    new AppError({
      code: 'chain_open',
      status: 400,
      message: 'The last transfer of a batch is linked to a next one that does not come.',
    }),
  batchEmpty: () => new AppError({ code: 'batch_empty', status: 400, message: 'The batch has no transfers.' }),
  batchTooLong: (linesMax: number) =>
    new AppError({
      code: 'batch_too_long',
      status: 413,
      message: `The batch is too long: at most ${linesMax} transfers go into one.`,
      details: { lines_max: linesMax },
    }),
  badRange: () => new AppError({ code: 'bad_range', status: 400, message: 'The range of time ends before it begins.' }),
}
