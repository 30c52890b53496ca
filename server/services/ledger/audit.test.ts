/** verify finds what somebody did to the books behind the ledger's back, and says where. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { makeTestLedger } from './test-support.ts'

const ledger = await makeTestLedger()
const { db, service } = ledger
const [ann, bob] = [ledger.user('ann'), ledger.user('bob')]
const from = await ann.open(1000)
const to = await bob.open(0)
const body = { from, to, amount: '10', currency: 'USD' }
const ids: string[] = []
for (let n = 0; n < 5; n++) ids.push((await ann.post('/v1/transfers', body)).body.id)
await ann.post('/v1/transfers', { ...body, pending: true })
const chained = await service.extendChain()

test('sound books are found sound, and the chain has a link a batch', async () => {
  assert.equal(chained, 6)
  assert.equal(await service.extendChain(), 0)
  const { head, ...rest } = await service.verify()
  assert.deepEqual(rest, { findings: [], accounts: 3, transfers: 6, links: 6 })
  assert.match(head, /^[0-9a-f]{64}$/)
})

test('what two processes chain at once is chained once', async () => {
  for (let n = 0; n < 5; n++) await ann.post('/v1/transfers', body)
  const other = await ledger.another()
  await Promise.all([service.extendChain(), other.service.extendChain(), service.extendChain()])
  await ledger.assertSound()
})

test('a transfer cannot be changed or deleted', async () => {
  for (const text of [
    'update ledger.transfers set amount = 1',
    'delete from ledger.transfers',
    'truncate ledger.transfers',
  ])
    await assert.rejects(db.query(text), /not changed/)
})

interface Fraud {
  what: string
  sql: string
  findings: RegExp[]
}

const t = ids[2]
const frauds: Fraud[] = [
  {
    what: 'a balance that was raised',
    sql: `update ledger.accounts set balance = balance + 5 where id = ${to}`,
    findings: [new RegExp(`^Account ${to} has the balance \\d+`), /^The balances of USD come to 5 /],
  },
  {
    what: 'a version that was skipped',
    sql: `update ledger.accounts set version = version + 1 where id = ${to}`,
    findings: [new RegExp(`^Account ${to} has .* the version 11; its entries .* are 10`)],
  },
  {
    what: 'pending money of no hold',
    sql: `update ledger.accounts set pending_out = pending_out + 1 where id = ${from}`,
    findings: [new RegExp(`^Account ${from} has 0 pending in and 11 pending out`)],
  },
  {
    what: 'an amount that was changed',
    sql: `update ledger.transfers set amount = amount + 1 where id = ${t}`,
    findings: [
      new RegExp(`^Account ${from} `),
      new RegExp(`^Account ${to} `),
      new RegExp(`^Entry 4 of account ${from} \\(transfer ${t}\\)`),
      new RegExp(`^Entry 3 of account ${to} \\(transfer ${t}\\)`),
      new RegExp(`^Link 4 of the chain \\(transfers ${t} to ${t}\\) has another digest`),
    ],
  },
  {
    what: 'metadata that was changed',
    sql: `update ledger.transfers set metadata = '{"a":1}' where id = ${t}`,
    findings: [/^Link 4 of the chain .* has another digest/],
  },
  {
    what: 'a currency that was changed',
    sql: `update ledger.transfers set currency = 'EUR' where id = ${t}`,
    findings: [new RegExp(`^Transfer ${t} of EUR is between account ${from} \\(USD\\)`), /digest/],
  },
  {
    what: 'a link that was removed',
    sql: `delete from ledger.chain where seq = 3`,
    findings: [/^Link 3 of the chain is missing: 4/, /^Link 4 .* does not follow/, /cover 10\.$/],
  },
  {
    what: 'a hold that says it was posted',
    sql: `update ledger.holds set status = 'posted', transfer_id = 1, settled_at = now()`,
    findings: [/pending/, /pending/, /^Hold \d+ of 10 is posted; the transfer that posts it is none/],
  },
]

for (const { what, sql, findings } of frauds) {
  test(`${what} is found`, async () => {
    // Behind the trigger's back, and taken back afterwards.
    const before = await copyTables()
    await asReplica(sql)
    const found = (await service.verify()).findings
    assert.equal(found.length, findings.length, found.join('\n'))
    for (const [index, pattern] of findings.entries()) assert.match(found[index]!, pattern)
    await restoreTables(before)
    assert.deepEqual((await service.verify()).findings, [])
  })
}

/** Triggers do not see what a replica writes. */
async function asReplica(sql: string) {
  await db.tx(async tx => {
    await tx.query('set local session_replication_role = replica')
    await tx.query(sql)
  })
}

const tables = ['accounts', 'transfers', 'holds', 'chain']

async function copyTables() {
  for (const table of tables) await db.query(`create table public.copy_${table} as table ledger.${table}`)
  return tables
}

async function restoreTables(names: string[]) {
  for (const table of names) {
    await asReplica(`delete from ledger.${table}`)
    await db.query(`insert into ledger.${table} table public.copy_${table}`)
    await db.query(`drop table public.copy_${table}`)
  }
}
