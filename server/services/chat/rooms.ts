/**
 * Rooms and who is in them. Every change locks the room, as every batch of messages does: so what happens to its
 * members has a place in the order of its messages, and is told by a message with a number of its own.
 */
import { createHash, randomBytes } from 'node:crypto'
import { type Database, replan, type Tx } from '#platform/database/pool.ts'
import { type Answer, type IdempotencyKey, idempotently } from '#platform/http/idempotency.ts'
import { uuidv7 } from '#platform/ids.ts'
import type { Live } from '#platform/live/live.ts'
import { assertRole, enter, lockChat, outranks, type Scene } from './access.ts'
import { insertChange } from './change-store.ts'
import { errors } from './errors.ts'
import { isBlocked } from './people-store.ts'
import * as store from './room-store.ts'
import { writeMessages } from './send-store.ts'
import { type ShownChat, showChat, showMember } from './shapes.ts'
import type { Chat, Person, Role, SystemEvent } from './types.ts'

export interface RoomsDeps {
  db: Database
  live: Pick<Live, 'wake'>
  membersMax: number
  /** Unix milliseconds. */
  clock: () => number
}

/** Who does something, to which room, and the key under which it is done once. */
export interface Act {
  person: Person
  chatId: string
  key?: IdempotencyKey | undefined
}

export type Rooms = ReturnType<typeof makeRooms>

const codeBytes = 16

export function makeRooms(deps: RoomsDeps) {
  const { db, live, clock } = deps

  /** Does `work` in the locked room, as a member of it. */
  function change<B>({ person, chatId, key }: Act, status: number, work: (tx: Tx, scene: Scene) => Promise<B>) {
    return idempotently<B>(db, key, async tx => {
      const scene = await enter(tx, { person, chatId, nowMs: clock() })
      if (scene.chat.kind !== 'room') throw errors.notARoom()
      return { status, body: await work(tx, scene) }
    })
  }

  /** A message of the system. */
  function tell(tx: Tx, { chat, person, at }: Omit<Scene, 'me'>, event: SystemEvent) {
    const text = { kind: 'system', text: '', replyTo: null, clientId: null, fingerprint: null } as const
    const message = { ...text, chatId: chat.id, seq: ++chat.lastSeq, senderId: person.id, details: { event } }
    writeMessages(tx, { messages: [message], at }, replan)
    tx.afterCommit(() => live.wake([`chats/${chat.id}`]))
  }

  /** On the topic of changes. */
  async function note(tx: Tx, { chat, at }: Pick<Scene, 'chat' | 'at'>, fields: ChangeFields) {
    await insertChange(tx, { chatId: chat.id, at, ...fields })
    tx.afterCommit(() => live.wake([`chat-changes/${chat.id}`]))
  }

  /** Ends a membership: by a message, and in both topics exactly there. */
  async function endMembership(tx: Tx, scene: Scene, gone: store.MemberRow, type: 'left' | 'removed') {
    const { chat, at } = scene
    const ends = gone.user_id
    await store.endMembership(tx, { chatId: chat.id, personId: gone.person_id, at })
    tell(tx, scene, {
      type,
      ...(type === 'removed' ? { username: gone.shown } : {}),
      ...(ends === null ? {} : { ends }),
    })
    await note(tx, scene, { type: 'member', data: { username: gone.shown, role: null }, ends })
  }

  async function letIn(tx: Tx, scene: Omit<Scene, 'me'>, people: readonly Person[], type: 'joined' | 'added') {
    const { chat, at } = scene
    if (chat.members + people.length > deps.membersMax) throw errors.roomFull(deps.membersMax)
    const personIds = people.map(person => person.id)
    const role = chat.members === 0 ? 'owner' : 'member'
    await store.insertMembers(tx, { chatId: chat.id, personIds, role, at })
    for (const person of people) {
      tell(tx, scene, type === 'joined' ? { type } : { type, username: person.name })
      await note(tx, scene, { type: 'member', data: { username: person.name, role } })
    }
  }

  async function view(tx: Tx, { person, chatId }: { person: Person; chatId: string }): Promise<ShownChat> {
    return showChat((await store.findView(tx, { personId: person.id, chatId }))!)
  }

  /** Lets somebody in who comes by itself. Does nothing for one who is in. */
  async function join(tx: Tx, given: { person: Person; chatId: string }, mayEnter: (chat: Chat) => Promise<void>) {
    const { person, chatId } = given
    const { chat, at } = await lockChat(tx, { chatId, nowMs: clock() })
    if (chat.kind !== 'room') throw errors.notARoom()
    const isIn = (await store.findMembers(tx, { chatId, personIds: [person.id] })).size > 0
    if (!isIn) {
      await mayEnter(chat)
      await letIn(tx, { chat, person, at }, [person], 'joined')
    }
    return view(tx, given)
  }

  /** @throws owner_must_hand_over */
  function leave(act: Act): Promise<Answer<null>> {
    return change(act, 204, async (tx, scene) => {
      const { chat, me } = scene
      if (me.role === 'owner' && chat.members > 1) throw errors.ownerMustHandOver()
      await endMembership(tx, scene, me, 'left')
      return null
    })
  }

  return {
    /** @throws blocked, room_full */
    create({ person, key, name, isOpen, members }: Omit<Act, 'chatId'> & NewRoom): Promise<Answer<ShownChat>> {
      return idempotently(db, key, async tx => {
        const id = uuidv7()
        await store.insertRoom(tx, { id, name, isOpen, at: new Date(clock()) })
        const { chat, at } = await lockChat(tx, { chatId: id, nowMs: clock() })
        const scene = { chat, person, at }
        await store.insertMembers(tx, { chatId: id, personIds: [person.id], role: 'owner', at })
        chat.members = 1
        tell(tx, scene, { type: 'created', name })
        const others = withoutDoubles(members).filter(member => member.id !== person.id)
        for (const member of others) await assertWelcome(tx, { person, added: member })
        if (others.length > 0) await letIn(tx, scene, others, 'added')
        return { status: 201, body: await view(tx, { person, chatId: id }) }
      })
    },

    /** @throws chat_not_found, not_a_member, not_a_room, role_too_low */
    update(act: Act, wish: { name?: string; isOpen?: boolean }): Promise<Answer<ShownChat>> {
      return change(act, 200, async (tx, scene) => {
        assertRole(scene.me.role, 'moderator')
        const { chat } = scene
        const { name = chat.name!, isOpen = chat.isOpen } = wish
        await store.updateRoom(tx, { id: chat.id, name, isOpen })
        if (name !== chat.name) tell(tx, scene, { type: 'renamed', name })
        if (isOpen !== chat.isOpen) tell(tx, scene, { type: isOpen ? 'opened' : 'closed' })
        return view(tx, act)
      })
    },

    /** Does nothing for one who is a member. @throws role_too_low, blocked, room_full */
    add(act: Act, added: Person) {
      return change(act, 201, async (tx, scene) => {
        assertRole(scene.me.role, 'moderator')
        const place = { chatId: act.chatId, personIds: [added.id] }
        if ((await store.findMembers(tx, place)).size === 0) {
          await assertWelcome(tx, { person: act.person, added })
          await letIn(tx, scene, [added], 'added')
        }
        return showMember((await store.findMembers(tx, place)).get(added.id)!)
      })
    },

    /** @throws invitation_needed, room_full */
    joinOpen({ person, chatId, key }: Act): Promise<Answer<ShownChat>> {
      return idempotently(db, key, async tx => ({
        status: 200,
        body: await join(tx, { person, chatId }, async chat => {
          if (!chat.isOpen) throw errors.invitationNeeded()
        }),
      }))
    },

    leave,

    /** @throws member_not_found, role_too_low, owner_must_hand_over for oneself as the owner */
    remove(act: Act, removed: Person): Promise<Answer<null>> {
      if (removed.id === act.person.id) return leave(act)
      return change(act, 204, async (tx, scene) => {
        const gone = await getMember(tx, act.chatId, removed)
        assertRole(scene.me.role, 'moderator')
        if (!outranks(scene.me.role, gone.role)) throw errors.roleTooLow('the owner')
        await endMembership(tx, scene, gone, 'removed')
        return null
      })
    },

    /** Who makes another the owner becomes a moderator. @throws member_not_found, role_too_low, owner_must_hand_over */
    setRole(act: Act, changed: Person, role: Role) {
      return change(act, 200, async (tx, scene) => {
        assertRole(scene.me.role, 'owner')
        const member = await getMember(tx, act.chatId, changed)
        const isSelf = member.person_id === act.person.id
        if (isSelf && role !== 'owner') throw errors.ownerMustHandOver()
        if (role === 'owner' && !isSelf) await give(tx, scene, act.person, 'moderator')
        if (role !== member.role) await give(tx, scene, changed, role)
        return showMember({ ...member, role })
      })
    },

    /** A code that lets others in. It is shown this once. @throws role_too_low */
    invite(act: Act, { expiresInMs, uses }: { expiresInMs: number; uses: number }) {
      return change(act, 201, async (tx, scene) => {
        assertRole(scene.me.role, 'moderator')
        const code = randomBytes(codeBytes).toString('base64url')
        const expiresAt = new Date(clock() + expiresInMs)
        await store.insertInvitation(tx, {
          digest: digestOf(code),
          chatId: act.chatId,
          madeBy: act.person.id,
          uses,
          expiresAt,
        })
        return { code, chat_id: act.chatId, uses, expires_at: expiresAt.toISOString() }
      })
    },

    /** Takes all invitations back. @throws role_too_low */
    uninvite(act: Act): Promise<Answer<null>> {
      return change(act, 204, async (tx, scene) => {
        assertRole(scene.me.role, 'moderator')
        await store.deleteInvitations(tx, act.chatId)
        return null
      })
    },

    /** @throws invitation_over, room_full */
    redeem({ person, key, code }: Omit<Act, 'chatId'> & { code: string }): Promise<Answer<ShownChat>> {
      return idempotently(db, key, async tx => {
        const digest = digestOf(code)
        const at = new Date(clock())
        const chatId = await store.findInvitation(tx, { digest, at })
        if (chatId === undefined) throw errors.invitationOver()
        const body = await join(tx, { person, chatId }, async () => {
          if (!(await store.useInvitation(tx, { digest, at }))) throw errors.invitationOver()
        })
        return { status: 200, body }
      })
    },
  }

  async function give(tx: Tx, scene: Scene, person: Person, role: Role) {
    await store.updateRole(tx, { chatId: scene.chat.id, personId: person.id, role })
    await note(tx, scene, { type: 'member', data: { username: person.name, role } })
  }
}

interface NewRoom {
  name: string
  isOpen: boolean
  members: readonly Person[]
}

interface ChangeFields {
  type: 'member'
  data: unknown
  ends?: string | null
}

async function getMember(tx: Tx, chatId: string, person: Person): Promise<store.MemberRow> {
  const member = (await store.findMembers(tx, { chatId, personIds: [person.id] })).get(person.id)
  if (!member) throw errors.memberNotFound(person.name)
  return member
}

/** @throws blocked */
async function assertWelcome(tx: Tx, { person, added }: { person: Person; added: Person }) {
  if (await isBlocked(tx, { blockerId: added.id, blockedId: person.id })) throw errors.blocked()
}

function withoutDoubles(people: readonly Person[]): Person[] {
  return [...new Map(people.map(person => [person.id, person])).values()]
}

function digestOf(code: string): Buffer {
  return createHash('sha256').update(code).digest()
}
