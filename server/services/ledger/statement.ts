import { type Ledger, showEntry } from './ledger.ts'

const pageMax = 1000
const columns = [
  'version',
  'created_at',
  'kind',
  'transfer_id',
  'other_account_id',
  'amount',
  'balance',
  'currency',
] as const

/** The entries of an account as CSV (RFC 4180), a page at a time as the reader takes them. No field needs quotes. */
export async function* writeStatement(
  ledger: Pick<Ledger, 'listEntries'>,
  given: { accountId: number; after: number; upTo: number },
): AsyncGenerator<string> {
  yield `${columns.join(',')}\r\n`
  let { after } = given
  while (after < given.upTo) {
    const rows = await ledger.listEntries({ ...given, after, limit: pageMax })
    if (rows.length === 0) return
    after = rows.at(-1)!.version
    yield rows
      .map(showEntry)
      .map(entry => `${columns.map(column => entry[column]).join(',')}\r\n`)
      .join('')
  }
}
