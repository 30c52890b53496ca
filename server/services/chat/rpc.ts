/** Chats over gRPC: proto/capstan/chat/v1. */
import type { MessageInitShape } from '@bufbuild/protobuf'
import type { Caller } from '#platform/http/guard.ts'
import { isUuid } from '#platform/ids.ts'
import type { Live, LiveEvent } from '#platform/live/live.ts'
import { callerOf } from '#platform/rpc/call.ts'
import type { Rpc } from '#platform/rpc/rpc.ts'
import { Chat as ChatRpc, type MessageSchema } from '../../proto/capstan/chat/v1/chat_pb.js'
import type { Chats } from './chat.ts'
import { errors } from './errors.ts'
import { type Pairs, spellingOf } from './pairs.ts'
import type { ShownMessage } from './shapes.ts'
import type { Message } from './types.ts'

export interface ChatRpcDeps {
  chats: Pick<Chats, 'assertMember'>
  pairs: Pairs
  live: Pick<Live, 'follow'>
}

type Sent = MessageInitShape<typeof MessageSchema>

const reads = { access: 'user', scope: 'chat:read' } as const
const writes = { access: 'user', scope: 'chat:write' } as const
/** Messages a client may leave unread before its stream ends. It comes back with its last number and misses nothing. */
const unreadMax = 10_000

export function addChatRpc(rpc: Pick<Rpc, 'addService'>, { chats, pairs, live }: ChatRpcDeps) {
  /** The id of the chat, whose member the caller is. @throws chat_not_found, not_a_member, not_two_members */
  async function find(caller: Caller, chat: string): Promise<string> {
    const chatId = isUuid(chat) ? chat.toLowerCase() : await pairs.find({ caller, chat })
    if (chatId === undefined) throw errors.chatNotFound()
    await chats.assertMember(caller, chatId)
    return chatId
  }

  rpc.addService(ChatRpc, {
    rules: { send: writes, pull: reads, subscribe: { ...reads, isEndless: true } },
    implementation: {
      async send({ message }, context) {
        const { chat, sender, text } = message ?? {}
        const made = await pairs.send({ caller: callerOf(context), isOpen: false, chat, sender, text })
        return { seq: BigInt(made.seq) }
      },
      async pull({ chat, cursor, limit, reverse }, context) {
        const page = await pairs.pull({
          caller: callerOf(context),
          chat,
          cursor: Number(cursor),
          limit: limit === 0 ? undefined : limit,
          reverse,
        })
        return {
          messages: page.messages.map(message => fromMessage(message, chat)),
          hasMore: page.hasMore,
          nextCursor: BigInt(page.nextCursor),
        }
      },
      async *subscribe({ chat, after }, context) {
        const caller = callerOf(context)
        const chatId = await find(caller, chat)
        const inbox = makeInbox(context.signal)
        const stop = live.follow(`chats/${chatId}`, Number(after), inbox.put)
        try {
          for await (const events of inbox.batches()) {
            // After the event that ended the membership nothing more may reach the caller, unless it is back.
            const end = events.findIndex(event => event.ends?.includes(caller.userId))
            yield { messages: (end < 0 ? events : events.slice(0, end + 1)).map(event => fromEvent(event, chat)) }
            if (end < 0) continue
            await chats.assertMember(caller, chatId)
            if (end + 1 < events.length) yield { messages: events.slice(end + 1).map(event => fromEvent(event, chat)) }
          }
        } finally {
          stop()
        }
      },
    },
  })
}

/** Holds what has come until the client takes it, all of it at once. */
function makeInbox(signal: AbortSignal) {
  let waiting: LiveEvent[] = []
  let wake = () => {}
  signal.addEventListener('abort', () => wake(), { once: true })
  return {
    put(events: LiveEvent[]) {
      waiting.push(...events)
      wake()
    },
    /** Ends when the call does. @throws too_slow */
    async *batches() {
      while (!signal.aborted) {
        if (waiting.length > unreadMax) throw errors.tooSlow()
        const events = waiting
        waiting = []
        if (events.length > 0) yield events
        else await new Promise<void>(resolve => (wake = resolve))
      }
    },
  }
}

function fromMessage(message: Message, chat: string): Sent {
  return {
    chat,
    text: message.text,
    sender: spellingOf(message),
    sendTime: BigInt(Math.floor(message.createdAt.getTime() / 1000)),
    seq: BigInt(message.seq),
  }
}

function fromEvent({ seq, data }: LiveEvent, chat: string): Sent {
  const { text, sender, created_at: createdAt } = data as ShownMessage
  return { chat, text, sender, sendTime: BigInt(Math.floor(Date.parse(createdAt) / 1000)), seq: BigInt(seq) }
}
