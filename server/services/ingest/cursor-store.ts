/** Every statement on how far the readers of a stream have come. */
import type { Queryable, Tx } from '#platform/database/pool.ts'
import { holdStream } from './stream-store.ts'

/** Which newest number a reader runs after. */
export type Counted = 'last_offset' | 'last_delta'

export interface Behind {
  streamId: number
  name: string
  position: number
  newest: number
}

/** Streams whose reader of that name is behind, the most behind first. */
export async function listBehind(
  db: Queryable,
  given: { reader: string; counted: Counted; limit: number },
): Promise<Behind[]> {
  const { rows } = await db.query<{ id: number; name: string; position: number; newest: number }>(
    `select s.id, s.name, coalesce(c.position, 0) as position, h.${given.counted} as newest
     from ingest.streams s
     join ingest.heads h on h.stream_id = s.id
     left join ingest.cursors c on c.stream_id = s.id and c.name = $1
     where h.${given.counted} > coalesce(c.position, 0)
     order by h.${given.counted} - coalesce(c.position, 0) desc limit $2`,
    [given.reader, given.limit],
  )
  return rows.map(row => ({ streamId: row.id, name: row.name, position: row.position, newest: row.newest }))
}

/** What each reader has before it, of each stream. */
export async function listLags(
  db: Queryable,
  given: { readers: readonly { name: string; counted: Counted }[]; limit: number },
): Promise<{ stream: string; reader: string; lag: number }[]> {
  const { rows } = await db.query<{ stream: string; reader: string; lag: number }>(
    `select s.name as stream, r.name as reader,
            case r.counted when 'last_offset' then h.last_offset else h.last_delta end - coalesce(c.position, 0) as lag
     from ingest.streams s
     join ingest.heads h on h.stream_id = s.id
     cross join unnest($1::text[], $2::text[]) as r(name, counted)
     left join ingest.cursors c on c.stream_id = s.id and c.name = r.name
     order by s.id limit $3`,
    [given.readers.map(reader => reader.name), given.readers.map(reader => reader.counted), given.limit],
  )
  return rows
}

/** Where the reader stands, locked until the transaction ends; undefined while another holds it. */
export async function lockCursor(tx: Tx, given: { streamId: number; reader: string }): Promise<number | undefined> {
  const { streamId, reader } = given
  holdStream(tx, streamId)
  await tx.query(
    `insert into ingest.cursors (stream_id, name) select id, $2 from ingest.streams where id = $1 on conflict do nothing`,
    [streamId, reader],
  )
  const { rows } = await tx.query<{ position: number }>(
    `select position from ingest.cursors where stream_id = $1 and name = $2 for update skip locked`,
    [streamId, reader],
  )
  return rows[0]?.position
}

export function moveCursor(tx: Tx, given: { streamId: number; reader: string; position: number }) {
  tx.send(`update ingest.cursors set position = $3 where stream_id = $1 and name = $2`, [
    given.streamId,
    given.reader,
    given.position,
  ])
}

/** The newest numbers. All segments up to `last_offset` can be seen by the statements that follow. */
export async function findHead(db: Queryable, streamId: number) {
  const { rows } = await db.query<{ last_offset: number; last_delta: number }>(
    `select last_offset, last_delta from ingest.heads where stream_id = $1`,
    [streamId],
  )
  return rows[0]
}

/** Takes the reader for a while, for work outside the database. Answers where it stands; undefined while another has it. */
export async function leaseCursor(
  db: Queryable,
  given: { streamId: number; reader: string; holder: string; seconds: number },
): Promise<number | undefined> {
  const { streamId, reader, holder, seconds } = given
  const { rows } = await db.query<{ position: number }>(
    `insert into ingest.cursors as c (stream_id, name, holder, held_until)
     select id, $2, $3, now() + make_interval(secs => $4) from ingest.streams where id = $1
     on conflict (stream_id, name) do update set holder = excluded.holder, held_until = excluded.held_until
       where c.holder = excluded.holder or c.held_until is null or c.held_until < now()
     returning position`,
    [streamId, reader, holder, seconds],
  )
  return rows[0]?.position
}

/** Says how far it has come. Answers false when another has taken the reader meanwhile. */
export async function moveLeased(
  db: Queryable,
  given: { streamId: number; reader: string; holder: string; from: number; to: number },
): Promise<boolean> {
  const { rowCount } = await db.query(
    `update ingest.cursors set position = $5 where stream_id = $1 and name = $2 and holder = $3 and position = $4`,
    [given.streamId, given.reader, given.holder, given.from, given.to],
  )
  return rowCount > 0
}

/** Says how far a reader has come that keeps its own place elsewhere. */
export async function noteCursor(
  db: Queryable,
  given: { streamId: number; reader: string; holder: string; position: number },
) {
  await db.query(`update ingest.cursors set position = $4 where stream_id = $1 and name = $2 and holder = $3`, [
    given.streamId,
    given.reader,
    given.holder,
    given.position,
  ])
}

/** Has a reader that keeps its own place elsewhere look at every stream again. */
export async function rewindCursors(db: Queryable, reader: string) {
  await db.query(`update ingest.cursors set position = 0 where name = $1 and position > 0`, [reader])
}

/** Lets others take what this process holds. */
export async function releaseLeases(db: Queryable, holder: string) {
  await db.query(`update ingest.cursors set holder = null, held_until = null where holder = $1`, [holder])
}
