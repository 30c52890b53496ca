import assert from 'node:assert/strict'
import { test } from 'node:test'
import { makeTestDatabase } from '../../../test/support/database.ts'
import { claimKeys, forgetOldKeys, type IdempotencyKey, idempotently } from './idempotency.ts'

const { db } = await makeTestDatabase({ poolMax: 30 })

function key(name: string, body = 'a'): IdempotencyKey {
  return { owner: 'someone', key: name, fingerprint: Buffer.from(body) }
}

test('fifty callers with one key do the work once and get one answer', async () => {
  let done = 0
  const answers = await Promise.all(
    Array.from({ length: 50 }, () =>
      idempotently(db, key('fifty'), async tx => {
        done++
        const { rows } = await tx.query<{ id: string }>('select gen_random_uuid()::text as id')
        return { status: 202, body: rows[0]! }
      }),
    ),
  )
  assert.equal(done, 1)
  assert.equal(new Set(answers.map(answer => answer.body.id)).size, 1)
  assert.ok(answers.every(answer => answer.status === 202))
})

test('a key used with another body is refused', async () => {
  await idempotently(db, key('other'), async () => ({ status: 200, body: 1 }))
  await assert.rejects(
    idempotently(db, key('other', 'b'), async () => ({ status: 200, body: 2 })),
    { code: 'idempotency_key_reused', status: 422 },
  )
})

test('work that fails leaves the key free', async () => {
  await assert.rejects(
    idempotently(db, key('fails'), async () => {
      throw new Error('no')
    }),
  )
  assert.deepEqual(await idempotently(db, key('fails'), async () => ({ status: 200, body: 3 })), {
    status: 200,
    body: 3,
  })
})

test('inside a batch the first of equal keys is fresh and the others get its answer', async () => {
  const items = ['x', 'y', 'x', undefined, 'x'].map((name, index) => ({
    key: name ? key(name, index === 4 ? 'changed' : 'same') : undefined,
    answer: { status: 202, body: index },
  }))
  const claims = await db.tx(tx => claimKeys(tx, items))
  assert.deepEqual(claims.slice(0, 4), ['fresh', 'fresh', { answer: { status: 202, body: 0 } }, 'fresh'])
  assert.equal((claims[4] as { error: { code: string } }).error.code, 'idempotency_key_reused')
})

test('old keys are forgotten, young ones kept', async () => {
  await db.query(`update platform.idempotency_keys set created_at = now() - interval '25 hours' where key = 'fifty'`)
  assert.equal(await forgetOldKeys(db, { hours: 24, limit: 100 }), 1)
  const { rows } = await db.query(`select from platform.idempotency_keys where key = 'other'`)
  assert.equal(rows.length, 1)
})
