/** The list of images: its order, its pages, and what reading one costs. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import pg from 'pg'
import type { Queryable } from '#platform/database/pool.ts'
import { encodeCursor } from '#platform/http/cursor.ts'
import { makeTestApp } from '../../../test/support/app.ts'
import { makeTestDatabase } from '../../../test/support/database.ts'
import { makePicture } from '../../../test/support/pictures.ts'
import { until } from '../../../test/support/until.ts'
import { type ImageFilter, listImages } from './store.ts'
import { assertProblem, makeSender, postForm } from './test-support.ts'

const { db } = await makeTestDatabase()
const owners = ['ann', 'bob', 'cem']
const imagesEach = 100_000
/** So many have come at one time. */
const atOneTime = 7
/** One of so many has failed. */
const failedEvery = 20_000
const first = Date.parse('2026-01-01T00:00:00.000Z')

await db.query(
  `with f as (
     insert into images.files (id, owner, profile, sha256, bytes, facts, status, shared, created_at)
     select gen_random_uuid(), owner, 'presets', '', 1, '{}', case when n % $3 = 0 then 'failed' else 'ready' end, false,
            $4::timestamptz + (n / $5::int) * interval '1 ms'
     from generate_series(1, $2::int) n, unnest($1::text[]) owner
     returning id, owner, created_at
   )
   insert into images.images (id, file_id, owner, visibility, created_at)
   select gen_random_uuid(), id, owner, 'private', created_at from f`,
  [owners, imagesEach, failedEvery, new Date(first), atOneTime],
)
await db.query('analyze images.files, images.images')

async function readPages(given: Omit<ImageFilter, 'before'>, pages: number): Promise<string[]> {
  const ids: string[] = []
  let before: ImageFilter['before']
  for (let page = 0; page < pages; page++) {
    const rows = await listImages(db, { ...given, before })
    ids.push(...rows.map(row => row.id))
    const end = rows.at(-1)
    if (!end) break
    before = { createdAt: end.created_at, id: end.id }
  }
  return ids
}

test('pages go on where the one before ended, also between images of one time', async () => {
  for (const status of [undefined, 'ready', 'failed'] as const) {
    const { rows } = await db.query<{ id: string }>(
      `select i.id from images.images i join images.files f on f.id = i.file_id
       where i.owner = 'bob' and ($1::text is null or f.status = $1) order by i.created_at desc, i.id desc limit 60`,
      [status ?? null],
    )
    assert.deepEqual(
      await readPages({ owner: 'bob', status, limit: 3 }, 20),
      rows.map(row => row.id),
    )
  }
})

interface PlanNode {
  'Node Type': string
  'Index Name'?: string
  'Actual Rows': number
  'Rows Removed by Filter'?: number
  Plans?: PlanNode[]
}

/** The plan that a connection keeps, which knows no values, carried out. */
async function explain(filter: ImageFilter): Promise<PlanNode[]> {
  const nodes: PlanNode[] = []
  const flatten = (node: PlanNode) => {
    nodes.push(node)
    for (const each of node.Plans ?? []) flatten(each)
  }
  const explaining: Queryable = {
    async query(text, values = []) {
      const literals = values.map(value => {
        const written = value instanceof Date ? value.toISOString() : value
        return written === null ? 'null' : pg.escapeLiteral(String(written))
      })
      const { rows } = await db.tx(
        async tx => {
          await tx.query(`prepare listed as ${text}`)
          const explained = await tx.query<{ 'QUERY PLAN': [{ Plan: PlanNode }] }>(
            `explain (analyze, timing off, format json) execute listed (${literals.join(', ')})`,
          )
          await tx.query('deallocate listed')
          return explained
        },
        { parameters: { plan_cache_mode: 'force_generic_plan' } },
      )
      flatten(rows[0]!['QUERY PLAN'][0].Plan)
      return { rows: [], rowCount: 0 }
    },
  }
  await listImages(explaining, filter)
  return nodes
}

const deep = { createdAt: new Date(first + imagesEach / atOneTime / 2), id: '80000000-0000-4000-8000-000000000000' }

for (const status of [undefined, 'ready', 'failed'] as const) {
  for (const before of [undefined, deep]) {
    test(`a page of ${status ?? 'all'} ${before ? 'far down' : 'at the top'} is read by the owner’s index`, async () => {
      const limit = 20
      const nodes = await explain({ owner: 'bob', status, before, limit })
      const walk = nodes.find(node => node['Index Name'] === 'images_owner')
      assert.ok(walk, JSON.stringify(nodes))
      const kinds = nodes.map(node => node['Node Type'])
      assert.ok(!kinds.some(kind => /Sort|Seq Scan|Hash/.test(kind)), kinds.join())
      // Neither what comes before the page nor what others have is looked at.
      assert.equal(walk['Rows Removed by Filter'] ?? 0, 0)
      if (status !== 'failed') assert.ok(walk['Actual Rows'] <= limit + 10, String(walk['Actual Rows']))
    })
  }
}

test('images of the old contract, whose ids are random, stand where they came', async () => {
  const server = await makeTestApp()
  const dan = await makeSender(server, 'dan')
  const headers = { authorization: `Bearer ${dan.user.token}` }
  const came: string[] = []
  for (let seed = 0; seed < 8; seed++) {
    const bytes = await makePicture({ width: 30, height: 20, format: 'jpeg', kind: 'flat', seed })
    if (seed % 2 === 0) {
      came.unshift((await dan.raw(bytes)).body.id)
      continue
    }
    // No worker may be free in time.
    await until(async () => {
      const { status, body } = await postForm(server, '/upload', { bytes, headers })
      if (status === 200) came.unshift(body.image_id)
      return status === 200
    })
  }
  const listed: string[] = []
  let cursor = ''
  do {
    const { body } = await dan.get(`/v1/images?limit=3${cursor}`)
    listed.push(...body.images.map((image: { id: string }) => image.id))
    cursor = body.next_cursor && `&cursor=${body.next_cursor}`
  } while (cursor)
  assert.deepEqual(listed, came)
  const id = came[0]!
  for (const values of [[id], [id, 1], [-1, id], [1.5, id], [1e300, id], [1, 'x'], [1, id, 1]]) {
    assertProblem(await dan.get(`/v1/images?cursor=${encodeCursor(values)}`), 400, 'bad_cursor')
  }
})
