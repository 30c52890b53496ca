/**
 * Sends messages. Those that come at the same time share a transaction: it locks their chats in the order of ids,
 * decides in the order in which they came, and numbers them. A message that may not be sent fails alone.
 */
import { hash } from 'node:crypto'
import { makeBatcher, type Outcome } from '#platform/batch.ts'
import { byIdsParameters, type Database, isConnectionLoss, type Tx } from '#platform/database/pool.ts'
import type { Live } from '#platform/live/live.ts'
import type { Metrics } from '#platform/metrics.ts'
import { errors } from './errors.ts'
import * as messages from './message-store.ts'
import * as store from './send-store.ts'
import type { Chat, Details, Draft, Message, Send } from './types.ts'

export interface Sending {
  /**
   * The message, durable when this resolves. A retry, known by its client id, answers the first one as it is now.
   * @throws chat_not_found, not_a_member, blocked, client_id_reused, bad_reply_to, mention_not_member
   */
  send(send: Send): Promise<Message>
  /** Resolves when nothing is under way. */
  idle(): Promise<void>
}

export interface SendingDeps {
  db: Database
  live: Pick<Live, 'wake'>
  metrics: Metrics
  /** Unix milliseconds. */
  clock: () => number
}

const batchMax = 1000
const waitingMax = 20_000
/** Batches in flight, of different chats each, so that the order in a chat is that of the calls. */
const lanes = 2
const batchBuckets = [1, 4, 16, 64, 256, 1000]

export function makeSending(deps: SendingDeps): Sending {
  const sent = deps.metrics.counter('chat_messages_sent', 'Messages accepted into chats.', [])
  const sizes = deps.metrics.histogram('chat_batch_messages', 'Messages that shared a commit.', [], batchBuckets)
  const batchers = Array.from({ length: lanes }, () =>
    makeBatcher<Send, Message>({
      name: 'messages',
      size: batchMax,
      waitingMax: waitingMax / lanes,
      isCommon: isConnectionLoss,
      run: sends => deps.db.tx(tx => deliver(tx, sends), { parameters: byIdsParameters }),
    }),
  )

  async function deliver(tx: Tx, sends: Send[]): Promise<Outcome<Message>[]> {
    const scene = await openScene(tx, sends)
    let nowMs = deps.clock()
    for (const chat of scene.chats.values()) nowMs = Math.max(nowMs, chat.lastAt.getTime())
    const { outcomes, fresh } = decide(scene, sends, new Date(nowMs))
    if (fresh.length === 0) return outcomes
    store.writeMessages(tx, { messages: fresh, at: new Date(nowMs) })
    tx.afterCommit(() => {
      sent.inc(fresh.length)
      sizes.observe(fresh.length)
      deps.live.wake([...new Set(fresh.map(message => `chats/${message.chatId}`))])
    })
    return outcomes
  }

  return {
    send: each => batchers[laneOf(each.chatId)]!.push(each),
    async idle() {
      await Promise.all(batchers.map(batcher => batcher.idle()))
    },
  }
}

/** The last digits of a UUIDv7 are random. */
function laneOf(chatId: string): number {
  return Number.parseInt(chatId.slice(-2), 16) % lanes
}

/** What a batch decides on. */
interface Scene {
  chats: Map<string, Chat>
  /** Members among the senders and the mentioned. */
  places: Set<string>
  /** By chat, sender and client id. */
  known: Map<string, { message: Message; fingerprint: string }>
}

/** All of it travels at once. Each statement looks when those before it hold their locks, so that it sees what was written under them. */
async function openScene(tx: Tx, sends: Send[]): Promise<Scene> {
  const ids = [...new Set(sends.map(each => each.chatId))].sort()
  const keyed = sends.filter(each => each.draft.clientId !== null)
  const mentioned = sends.flatMap(each => each.mentioned.map(person => ({ chatId: each.chatId, personId: person.id })))
  const [chats, places, others, known] = await Promise.all([
    store.lockChats(tx, ids),
    store.lockPlaces(tx, uniquePlaces(sends.map(each => ({ chatId: each.chatId, personId: each.sender.id })))),
    mentioned.length > 0 ? store.findPlaces(tx, uniquePlaces(mentioned)) : [],
    keyed.length > 0 ? messages.findSent(tx, keyed.map(toSentKey)) : [],
  ])
  for (const place of others) places.add(place)
  return { chats, places, known: new Map(known.map(each => [keyOf(each.message, each.senderId), each])) }
}

function uniquePlaces(places: store.Place[]): store.Place[] {
  return [...new Map(places.map(place => [store.placeKey(place), place])).values()]
}

function toSentKey({ chatId, sender, draft }: Send) {
  return { chatId, senderId: sender.id, clientId: draft.clientId! }
}

function keyOf({ chatId, clientId }: Pick<Message, 'chatId' | 'clientId'>, senderId: number): string {
  return `${chatId} ${senderId} ${clientId}`
}

/** In the order of the calls; gives the chats their new numbers. */
function decide(scene: Scene, sends: Send[], at: Date) {
  const fresh: store.NewMessage[] = []
  const outcomes = sends.map((each): Outcome<Message> => {
    const chat = scene.chats.get(each.chatId)
    if (!chat) return { error: errors.chatNotFound() }
    if (!isPlaced(scene, chat, each.sender.id)) return { error: errors.notAMember() }
    const { clientId } = each.draft
    const fingerprint = clientId === null ? null : digest(each.draft)
    const key = keyOf({ chatId: chat.id, clientId }, each.sender.id)
    const first = clientId === null ? undefined : scene.known.get(key)
    if (first)
      return sameAs(first.fingerprint, fingerprint!) ? { value: first.message } : { error: errors.clientIdReused() }
    const refusal = refusalOf(scene, chat, each)
    if (refusal) return { error: refusal }
    const message = compose(each, ++chat.lastSeq, at)
    if (fingerprint !== null) scene.known.set(key, { message, fingerprint })
    fresh.push({ ...message, senderId: each.sender.id, fingerprint })
    return { value: message }
  })
  return { outcomes, fresh }
}

function isPlaced(scene: Scene, chat: Chat, personId: number): boolean {
  return scene.places.has(store.placeKey({ chatId: chat.id, personId }))
}

function refusalOf(scene: Scene, chat: Chat, { sender, draft, mentioned }: Send): Error | undefined {
  const isBlocked = chat.pair?.low === sender.id ? chat.lowBlocked : chat.highBlocked
  if (chat.pair && isBlocked) return errors.blocked()
  // A chat has every number up to its last.
  if (draft.replyTo !== null && draft.replyTo > chat.lastSeq) return errors.badReplyTo()
  const stranger = mentioned.find(person => !isPlaced(scene, chat, person.id))
  return stranger && errors.mentionNotMember(stranger.name)
}

function compose(send: Send, seq: number, at: Date): Message {
  const { draft, sender } = send
  return {
    chatId: send.chatId,
    seq,
    sender: sender.name,
    kind: 'text',
    text: draft.text,
    clientId: draft.clientId,
    replyTo: draft.replyTo,
    details: detailsOf(send),
    reactions: null,
    createdAt: at,
    editedAt: null,
    edits: 0,
    deletedAt: null,
  }
}

function detailsOf({ draft, mentioned, spelling }: Send): Details | null {
  if (mentioned.length === 0 && draft.attachments.length === 0 && spelling === undefined) return null
  return {
    ...(mentioned.length > 0 ? { mentions: [...new Set(mentioned.map(person => person.name))] } : {}),
    ...(draft.attachments.length > 0 ? { attachments: draft.attachments } : {}),
    ...(spelling === undefined ? {} : { spelling }),
  }
}

/** Half of SHA-256: 128 bits are enough, and fit a uuid. */
const digestChars = 32

function digest({ text, replyTo, mentions, attachments }: Draft): string {
  return hash('sha256', JSON.stringify([text, replyTo, mentions, attachments]), 'hex').slice(0, digestChars)
}

function sameAs(stored: string, fingerprint: string): boolean {
  return stored.replaceAll('-', '') === fingerprint
}
