/**
 * Takes records over from Kafka into the store: reads the partitions that are this process's share from the places
 * kept in PostgreSQL, and no others. Kafka's own groups are not used: they would keep places of their own, which could
 * not be in one transaction with the records.
 *
 * States of a partition here: another's, or nobody's → leased, with the place from which it is read next → lost, when
 * something went wrong with it: it is leased again, and its place is read again from the store. Two consumers at one
 * partition, as when a lease ran out unnoticed, cost work and no more (see kafka-taking.ts).
 *
 * What is read while the last reading is being written waits for it, so memory holds two readings a broker at most.
 */
import { Consumer, ResponseError } from '@platformatic/kafka'
import type { Database } from '#platform/database/pool.ts'
import type { Log } from '#platform/log.ts'
import { clientOptions, type Fetched, type KafkaPlace } from './kafka-client.ts'
import { makeShares, type Share } from './kafka-shares.ts'
import { Overtaken, type Piece, readPiece, type Taking } from './kafka-taking.ts'
import type { Streams } from './streams.ts'

export interface KafkaConsumer {
  start(): void
  /** Looks for topics and partitions now. */
  wake(): void
  /** Finishes what is being written and lets others go on. */
  stop(): Promise<void>
  /** How many records lie in Kafka that were not taken over, by stream; of this process's share. */
  lags(): ReadonlyMap<string, number>
}

export interface KafkaConsumerDeps extends KafkaPlace {
  db: Database
  streams: Pick<Streams, 'get'>
  taking: Taking
  log: Log
  /** Names this process among the consumers. */
  holder: string
}

/** How long a reading waits for records when there are none. */
const pollMs = 500
const fetchBytesMax = 8 * 1024 * 1024
const partitionBytesMax = 2 * 1024 * 1024
const tendMs = 2000
const tendSoonMs = 100
const failedMs = 500

export function makeKafkaConsumer(deps: KafkaConsumerDeps): KafkaConsumer {
  const { log } = deps
  const consumer = new Consumer({ ...clientOptions(deps), groupId: 'none' })
  const shares = makeShares({ ...deps, consumer })
  const loops = new Map<number, Promise<void>>()
  let timer: NodeJS.Timeout | undefined
  let tending: Promise<void> | undefined
  let isAway = false
  let stopped = false
  let endPauses = () => {}
  const stopping = new Promise<void>(resolve => {
    endPauses = resolve
  })

  function tendLater(ms: number) {
    clearTimeout(timer)
    if (stopped) return
    timer = setTimeout(() => {
      tending ??= tend().finally(() => {
        tending = undefined
        tendLater(tendMs)
      })
    }, ms)
  }

  async function tend() {
    try {
      await shares.tend()
      if (isAway) log.info('records are taken over from Kafka again')
      isAway = false
      startLoops()
    } catch (error) {
      if (!isAway) log.warn({ err: error }, 'records cannot be taken over from Kafka just now; it is tried again')
      isAway = true
    }
  }

  function startLoops() {
    for (const { node } of shares.all()) {
      if (stopped || loops.has(node)) continue
      loops.set(
        node,
        readOn(node).finally(() => {
          loops.delete(node)
          // A share may have come while the loop was ending.
          startLoops()
        }),
      )
    }
  }

  /** Reads a broker's partitions until none is this process's share. */
  async function readOn(node: number) {
    let writing: Promise<void> = Promise.resolve()
    for (;;) {
      const mine = shares.of(node)
      if (stopped || mine.length === 0) break
      const pieces = await fetchPieces(node, mine)
      await writing
      writing = write(pieces)
    }
    await writing
  }

  async function fetchPieces(node: number, mine: readonly Share[]): Promise<[Share, Piece][]> {
    try {
      const response = await consumer.fetch({
        node,
        maxWaitTime: pollMs,
        minBytes: 1,
        maxBytes: fetchBytesMax,
        topics: toTopics(mine),
      })
      return readPieces(response, mine)
    } catch (error) {
      if (stopped) return []
      if (error instanceof ResponseError) await shares.repair(mine, error).catch(() => {})
      log.debug({ err: error, node }, 'a broker of Kafka did not answer as it should')
      consumer.clearMetadata()
      tendLater(tendSoonMs)
      await pause(failedMs)
      return []
    }
  }

  async function write(pieces: readonly [Share, Piece][]) {
    const byStream = Map.groupBy(
      // One that was lost while it was read is read again, from its place.
      pieces.filter(([share]) => shares.has(share)),
      ([share]) => share.name,
    )
    await Promise.all([...byStream].map(([name, ofStream]) => writeStream(name, ofStream)))
  }

  async function writeStream(name: string, pieces: readonly [Share, Piece][]) {
    try {
      const stream = await deps.streams.get(name)
      if (stream.id !== pieces[0]![0].streamId) throw new Overtaken(`The stream ${name} was declared anew.`)
      await deps.taking.takeOver(
        stream,
        pieces.map(([, piece]) => piece),
      )
    } catch (error) {
      for (const [share] of pieces) shares.lose(share)
      const isUsual = error instanceof Overtaken
      log[isUsual ? 'debug' : 'warn'](
        { err: error, stream: name },
        'records from Kafka were not written; they are read again',
      )
      tendLater(isUsual ? tendSoonMs : failedMs)
    }
  }

  async function pause(ms: number) {
    let slept: NodeJS.Timeout | undefined
    await Promise.race([stopping, new Promise(resolve => (slept = setTimeout(resolve, ms)))])
    clearTimeout(slept)
  }

  return {
    start: () => tendLater(0),
    wake: () => tendLater(0),
    async stop() {
      stopped = true
      clearTimeout(timer)
      endPauses()
      await tending
      // It ends the readings that wait for records.
      await consumer.close(true).catch(() => {})
      await Promise.all(loops.values())
      await shares
        .leave()
        .catch(error => log.debug({ err: error }, 'others find this one’s share when its lease is over'))
    },
    lags: () => shares.lags(),
  }
}

function toTopics(mine: readonly Share[]) {
  return [...Map.groupBy(mine, share => share.topicId)].map(([topicId, shares]) => ({
    topicId,
    partitions: shares.map(({ partition, next }) => ({
      partition,
      currentLeaderEpoch: -1,
      fetchOffset: BigInt(next),
      lastFetchedEpoch: -1,
      partitionMaxBytes: partitionBytesMax,
    })),
  }))
}

/** What came of each share, which goes on behind it. */
function readPieces(response: Fetched, mine: readonly Share[]): [Share, Piece][] {
  const pieces: [Share, Piece][] = []
  for (const { topicId, partitions } of response.responses) {
    for (const fetched of partitions) {
      const share = mine.find(each => each.topicId === topicId && each.partition === fetched.partitionIndex)
      if (!share) continue
      const piece = readPiece(fetched, { topicId, from: share.next })
      share.end = Number(fetched.highWatermark)
      if (!piece) continue
      share.next = piece.to
      pieces.push([share, piece])
    }
  }
  return pieces
}
