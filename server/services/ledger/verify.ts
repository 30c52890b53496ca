import type { Database, Tx } from '#platform/database/pool.ts'
import * as store from './audit-store.ts'
import { genesis, hashLink } from './chain.ts'

export interface Verification {
  /** What is wrong and where, a sentence each; at most 100 of a kind. Empty when all is well. */
  findings: string[]
  accounts: number
  transfers: number
  /** Links of the hash chain. */
  links: number
  /** The last link's hash, in hexadecimal: noted elsewhere, it proves later that nothing was changed. */
  head: string
}

const findingsMax = 100
const linksPage = 500

/** Recomputes everything from the entries, as of one moment. Writers are not held up. */
export async function verify(db: Database): Promise<Verification> {
  return db.tx(async tx => {
    await store.readAlike(tx)
    const findings: string[] = []
    for (const find of [
      store.findWrongBalances,
      store.findWrongPending,
      store.findWrongEntries,
      store.findWrongParties,
      store.findWrongHolds,
      store.findWrongSums,
    ]) {
      findings.push(...(await find(tx, findingsMax)))
    }
    const counts = await store.countTransfers(tx)
    const chain = await verifyChain(tx)
    findings.push(...chain.findings.slice(0, findingsMax))
    const covered = chain.transfers + counts.in_unchained
    if (covered !== counts.transfers) {
      findings.push(`There are ${counts.transfers} transfers; the chain and what waits for it cover ${covered}.`)
    }
    return {
      findings,
      accounts: counts.accounts,
      transfers: counts.transfers,
      links: chain.links,
      head: chain.head.toString('hex'),
    }
  })
}

async function verifyChain(tx: Tx) {
  const findings: string[] = []
  let transfers = 0
  let seq = 0
  let head: Buffer = genesis
  for (;;) {
    const page = await store.listLinks(tx, { after: seq, limit: linksPage })
    for (const link of page) {
      if (link.seq !== seq + 1) findings.push(`Link ${seq + 1} of the chain is missing: ${link.seq} comes next.`)
      findings.push(...faultsOf(link, head))
      seq = link.seq
      head = link.hash
      transfers += link.transfers
    }
    if (page.length < linksPage) return { findings, transfers, links: seq, head }
  }
}

function faultsOf(link: Awaited<ReturnType<typeof store.listLinks>>[number], before: Buffer): string[] {
  const where = `Link ${link.seq} of the chain (transfers ${link.first_id} to ${link.last_id})`
  const faults: string[] = []
  if (link.transfers_now !== link.transfers)
    faults.push(`${where} is over ${link.transfers} transfers; there are ${link.transfers_now}.`)
  if (!link.digest_now.equals(link.digest)) faults.push(`${where} has another digest than its transfers.`)
  if (!hashLink(before, link.digest).equals(link.hash)) faults.push(`${where} does not follow from the link before it.`)
  return faults
}
