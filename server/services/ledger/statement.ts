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

/** Which entries a statement has: those numbered above `after`, up to `upTo`. */
export interface Statement {
  accountId: number
  after: number
  upTo: number
}

/** A statement's entries, a page at a time as the reader takes them. */
export async function* readStatement(ledger: Pick<Ledger, 'listEntries'>, statement: Statement) {
  let { after } = statement
  while (after < statement.upTo) {
    const rows = await ledger.listEntries({ ...statement, after, limit: pageMax })
    if (rows.length === 0) return
    after = rows.at(-1)!.version
    yield rows.map(showEntry)
  }
}

/** The same as CSV (RFC 4180). No field needs quotes. */
export async function* writeStatement(
  ledger: Pick<Ledger, 'listEntries'>,
  statement: Statement,
): AsyncGenerator<string> {
  yield `${columns.join(',')}\r\n`
  for await (const entries of readStatement(ledger, statement))
    yield entries.map(entry => `${columns.map(column => entry[column]).join(',')}\r\n`).join('')
}
