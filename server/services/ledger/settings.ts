import { integer, type Settings, type SettingsTable, text } from '#platform/config.ts'
import { parseUnits } from './money.ts'

export const ledgerSettings = {
  LEDGER_UNITS: {
    ...text('CREDIT:0', 'Units besides the currencies of ISO 4217, each with its exponent: `CREDIT:0,POINT:2`.'),
    parse(value: string) {
      parseUnits(value)
      return value
    },
  },
  LEDGER_BATCH_MAX: integer(8000, { min: 1, max: 8000 }, 'Most transfers in one request to /v1/transfers/batch.'),
  LEDGER_HOLD_SECONDS: integer(
    7 * 86_400,
    { min: 1, max: 365 * 86_400 },
    'How long a hold lasts unless it says, in s.',
  ),
  LEDGER_HOLD_SECONDS_MAX: integer(30 * 86_400, { min: 1, max: 365 * 86_400 }, 'How long a hold may last, in s.'),
} satisfies SettingsTable

export type LedgerSettings = Settings<typeof ledgerSettings>
