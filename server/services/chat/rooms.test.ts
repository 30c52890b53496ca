import assert from 'node:assert/strict'
import { test } from 'node:test'
import { type Answer, makeTestChat, type TestUser } from './test-support.ts'

const chat = await makeTestChat({ settings: { CHAT_MEMBERS_MAX: 12 } })
const ada = chat.user('Ada')
const [bob, carol, dave] = ['bob', 'carol', 'dave'].map(name => chat.user(name)) as [TestUser, TestUser, TestUser]

/** A room with one of each role, and one who is in none. */
async function cast() {
  const [owner, moderator, other, member, peer, stranger] = [
    'owner',
    'moderator',
    'other',
    'member',
    'peer',
    'stranger',
  ].map(name => chat.user(name)) as [TestUser, TestUser, TestUser, TestUser, TestUser, TestUser]
  const id = await chat.room([owner, moderator, other, member, peer])
  for (const each of [moderator, other]) {
    const made = await owner.patch(`/v1/chats/${id}/members/${each.name}`, { role: 'moderator' })
    assert.deepEqual([made.status, made.body.role], [200, 'moderator'], made.text)
  }
  return { id, at: `/v1/chats/${id}`, owner, moderator, other, member, peer, stranger }
}

function codeOf(answer: Answer): string | number {
  return answer.status >= 400 ? answer.body.code : answer.status
}

async function eventsOf(user: TestUser, id: string): Promise<string[]> {
  const { body } = await user.get(`/v1/chats/${id}/messages?after=0&limit=500`)
  return body.messages
    .filter((message: { kind: string }) => message.kind === 'system')
    .map(({ sender, event }: { sender: string; event: { type: string; username: string | null } }) =>
      [sender, event.type, event.username].filter(Boolean).join(' '),
    )
}

test('a room tells by messages of its own what happens to it and its members', async () => {
  const made = await ada.post('/v1/chats', {
    kind: 'room',
    name: ' Harbour ',
    open: true,
    members: ['bob', 'BOB', 'Ada'],
  })
  assert.equal(made.status, 201, made.text)
  const { id } = made.body
  assert.deepEqual([made.body.name, made.body.role, made.body.members, made.body.with], ['Harbour', 'owner', 2, null])
  await carol.post(`/v1/chats/${id}/join`)
  await ada.patch(`/v1/chats/${id}`, { name: 'Old harbour', open: false })
  await ada.delete(`/v1/chats/${id}/members/bob`)
  await carol.post(`/v1/chats/${id}/leave`)
  assert.deepEqual(await eventsOf(ada, id), [
    'Ada created',
    'Ada added bob',
    'carol joined',
    'Ada renamed',
    'Ada closed',
    'Ada removed bob',
    'carol left',
  ])
  assert.equal((await ada.get(`/v1/chats/${id}`)).body.members, 1)
  await chat.assertDense()
})

test('who may do what in a room', async () => {
  type Room = Awaited<ReturnType<typeof cast>>
  const roles = ['owner', 'moderator', 'member', 'stranger'] as const
  const ok = [200, 201, 204]
  const cases: [what: string, act: (room: Room, user: TestUser) => Promise<Answer>, codes: (string | number)[]][] = [
    ['look', ({ at }, user) => user.get(at), ['ok', 'ok', 'ok', 'not_a_member']],
    ['read', ({ at }, user) => user.get(`${at}/messages`), ['ok', 'ok', 'ok', 'not_a_member']],
    ['list members', ({ at }, user) => user.get(`${at}/members`), ['ok', 'ok', 'ok', 'not_a_member']],
    ['search', ({ at }, user) => user.get(`${at}/search?q=x`), ['ok', 'ok', 'ok', 'not_a_member']],
    ['send', ({ at }, user) => user.post(`${at}/messages`, { text: 'x' }), ['ok', 'ok', 'ok', 'not_a_member']],
    ['type', ({ at }, user) => user.post(`${at}/typing`), ['ok', 'ok', 'ok', 'not_a_member']],
    ['react', ({ at }, user) => user.put(`${at}/messages/1/reactions/x`), ['ok', 'ok', 'ok', 'not_a_member']],
    ['mute', ({ at }, user) => user.put(`${at}/mute`, { until: null }), ['ok', 'ok', 'ok', 'not_a_member']],
    ['rename', ({ at }, user) => user.patch(at, { name: 'x' }), ['ok', 'ok', 'role_too_low', 'not_a_member']],
    [
      'add',
      ({ at }, user) => user.post(`${at}/members`, { username: 'dave' }),
      ['ok', 'ok', 'role_too_low', 'not_a_member'],
    ],
    ['invite', ({ at }, user) => user.post(`${at}/invitations`), ['ok', 'ok', 'role_too_low', 'not_a_member']],
    ['uninvite', ({ at }, user) => user.delete(`${at}/invitations`), ['ok', 'ok', 'role_too_low', 'not_a_member']],
    [
      'delete another’s message',
      async ({ at, peer }, user) => {
        const { body } = await peer.post(`${at}/messages`, { text: 'x' })
        return user.delete(`${at}/messages/${body.seq}`)
      },
      ['ok', 'ok', 'role_too_low', 'not_a_member'],
    ],
    [
      'edit another’s message',
      async ({ at, peer }, user) => {
        const { body } = await peer.post(`${at}/messages`, { text: 'x' })
        return user.patch(`${at}/messages/${body.seq}`, { text: 'y' })
      },
      ['not_the_sender', 'not_the_sender', 'not_the_sender', 'not_a_member'],
    ],
    [
      'remove a member',
      ({ at }, user) => user.delete(`${at}/members/peer`),
      ['ok', 'ok', 'role_too_low', 'not_a_member'],
    ],
    [
      'remove a moderator',
      ({ at }, user) => user.delete(`${at}/members/other`),
      ['ok', 'role_too_low', 'role_too_low', 'not_a_member'],
    ],
    [
      'remove the owner',
      ({ at }, user) => user.delete(`${at}/members/owner`),
      ['owner_must_hand_over', 'role_too_low', 'role_too_low', 'not_a_member'],
    ],
    [
      'make a moderator',
      ({ at }, user) => user.patch(`${at}/members/peer`, { role: 'moderator' }),
      ['ok', 'role_too_low', 'role_too_low', 'not_a_member'],
    ],
    [
      'hand over',
      ({ at }, user) => user.patch(`${at}/members/peer`, { role: 'owner' }),
      ['ok', 'role_too_low', 'role_too_low', 'not_a_member'],
    ],
    ['leave', ({ at }, user) => user.post(`${at}/leave`), ['owner_must_hand_over', 'ok', 'ok', 'not_a_member']],
    ['join what is not open', ({ at }, user) => user.post(`${at}/join`), ['ok', 'ok', 'ok', 'invitation_needed']],
  ]
  for (const [what, act, codes] of cases) {
    for (const [index, role] of roles.entries()) {
      const room = await cast()
      const code = codeOf(await act(room, room[role]))
      assert.equal(ok.includes(code as number) ? 'ok' : code, codes[index], `${role}: ${what}`)
    }
  }
})

test('who hands a room over becomes a moderator, and may leave then', async () => {
  const { at, owner, member } = await cast()
  assert.equal(codeOf(await owner.post(`${at}/leave`)), 'owner_must_hand_over')
  assert.equal(codeOf(await owner.patch(`${at}/members/owner`, { role: 'member' })), 'owner_must_hand_over')
  assert.equal((await owner.patch(`${at}/members/member`, { role: 'owner' })).body.role, 'owner')
  assert.equal((await owner.get(at)).body.role, 'moderator')
  assert.equal((await member.get(at)).body.role, 'owner')
  assert.equal(codeOf(await owner.post(`${at}/leave`)), 204)
})

test('two owners at once cannot be made', async () => {
  const { at, owner } = await cast()
  const outcomes = await Promise.all(
    ['member', 'peer'].map(name => owner.patch(`${at}/members/${name}`, { role: 'owner' })),
  )
  assert.deepEqual(outcomes.map(codeOf).sort(), [200, 'role_too_low'])
})

test('the last one out need not hand over, and who joins an open room without an owner becomes it', async () => {
  const id = await chat.room([ada], { open: true })
  assert.equal(codeOf(await ada.post(`/v1/chats/${id}/leave`)), 204)
  assert.equal((await bob.post(`/v1/chats/${id}/join`)).body.role, 'owner')
})

test('who has left or was removed sends and reads no more, and may come again', async () => {
  const id = await chat.room([ada, bob], { open: true })
  const at = `/v1/chats/${id}`
  await bob.say(id, 'x')
  await bob.post(`${at}/leave`)
  for (const answer of [
    await bob.post(`${at}/messages`, { text: 'x' }),
    await bob.get(`${at}/messages`),
    await bob.post(`${at}/read`, { seq: 1 }),
    await bob.patch(`${at}/messages/3`, { text: 'y' }),
    await bob.post(`${at}/leave`),
  ]) {
    assert.equal(codeOf(answer), 'not_a_member')
  }
  assert.equal((await bob.get(at)).body.role, null, 'an open room shows itself')
  const again = await bob.post(`${at}/join`)
  assert.deepEqual([again.body.role, again.body.unread], ['member', 0])
  assert.deepEqual(await bob.texts(id), ['', '', 'x', '', ''], 'all of it, from the beginning')
})

test('what was written before one came is not unread', async () => {
  const id = await chat.room([ada], { open: true })
  for (let at = 0; at < 5; at++) await ada.say(id, 'x')
  assert.equal((await dave.post(`/v1/chats/${id}/join`)).body.unread, 0)
  await ada.say(id, 'x')
  assert.equal((await dave.get(`/v1/chats/${id}`)).body.unread, 1)
})

test('an invitation lets in as many as it says, as long as it says', async () => {
  const id = await chat.room([ada])
  const made = await ada.post(`/v1/chats/${id}/invitations`, { uses: 2, expires_in_seconds: 60 })
  assert.equal(made.status, 201, made.text)
  const redeem = (user: TestUser, code = made.body.code) => user.post('/v1/chats/invitations/redeem', { code })
  const outcomes = await Promise.all([bob, carol, dave].map(user => redeem(user)))
  assert.deepEqual(outcomes.map(codeOf).sort(), [200, 200, 'invitation_over'])
  const inside = [bob, carol, dave][outcomes.findIndex(outcome => outcome.status === 200)]!
  const late = await ada.post(`/v1/chats/${id}/invitations`, { expires_in_seconds: 60 })
  assert.equal(codeOf(await redeem(inside, late.body.code)), 200, 'who is in is let in, and uses nothing up')
  chat.time.offsetMs += 61_000
  assert.equal(codeOf(await redeem(chat.user('latecomer'), late.body.code)), 'invitation_over')
  chat.time.offsetMs -= 61_000
  await ada.delete(`/v1/chats/${id}/invitations`)
  assert.equal(codeOf(await redeem(chat.user('latecomer'), late.body.code)), 'invitation_over')
  assert.equal(codeOf(await redeem(bob, 'nonsense')), 'invitation_over')
})

test('a room takes no more members than it may', async () => {
  const id = await chat.room([ada], { open: true })
  const guests = Array.from({ length: 15 }, (_, at) => chat.user(`guest${at}`))
  const outcomes = await Promise.all(guests.map(guest => guest.post(`/v1/chats/${id}/join`)))
  assert.equal(outcomes.filter(outcome => outcome.status === 200).length, 11)
  assert.equal(outcomes.filter(outcome => codeOf(outcome) === 'room_full').length, 4)
  assert.equal((await ada.get(`/v1/chats/${id}`)).body.members, 12)
})

test('open rooms are found by the beginnings of their names, in pages', async () => {
  for (const name of ['Zebra one', 'zebra two', 'ZEBRA 3%', 'zeb_ra']) await chat.room([ada], { name, open: true })
  await chat.room([ada], { name: 'zebra hidden' })
  const seen: string[] = []
  for (let cursor: string | null = ''; cursor !== null; ) {
    const { body } = await bob.get(`/v1/chats/open?q=ZEBRA&limit=2${cursor ? `&cursor=${cursor}` : ''}`)
    seen.push(...body.chats.map((room: { name: string }) => room.name))
    cursor = body.next_cursor
  }
  assert.deepEqual(seen, ['ZEBRA 3%', 'Zebra one', 'zebra two'])
  assert.deepEqual(
    (await bob.get('/v1/chats/open?q=zeb_')).body.chats.map((room: { name: string }) => room.name),
    ['zeb_ra'],
  )
})

test('a room that is made with a key is made once', async () => {
  const body = { kind: 'room', name: 'Once', members: ['bob'] }
  const first = await ada.post('/v1/chats', body, 'room-key')
  const again = await ada.post('/v1/chats', body, 'room-key')
  assert.deepEqual([again.status, again.body], [201, first.body])
  const other = await ada.post('/v1/chats', { ...body, name: 'Other' }, 'room-key')
  assert.equal(codeOf(other), 'idempotency_key_reused')
})

test('a direct chat keeps its two members', async () => {
  const at = `/v1/chats/${await chat.direct(ada, bob)}`
  for (const answer of [
    await ada.post(`${at}/members`, { username: 'carol' }),
    await ada.post(`${at}/leave`),
    await ada.delete(`${at}/members/bob`),
    await carol.post(`${at}/join`),
    await ada.patch(at, { name: 'x' }),
    await ada.post(`${at}/invitations`),
  ]) {
    assert.equal(codeOf(answer), 'not_a_room')
  }
})

test('members who join, leave and send at the same time leave dense numbers and a right count', async () => {
  const id = await chat.room([ada], { open: true })
  const people = Array.from({ length: 8 }, (_, at) => chat.user(`busy${at}`))
  await Promise.all(
    people.map(async person => {
      for (let round = 0; round < 5; round++) {
        await person.post(`/v1/chats/${id}/join`)
        await Promise.all([person.post(`/v1/chats/${id}/messages`, { text: 'x' }), ada.say(id, 'y')])
        if (round < 4) await person.post(`/v1/chats/${id}/leave`)
      }
    }),
  )
  assert.equal((await ada.get(`/v1/chats/${id}`)).body.members, 9)
  const { rows } = await chat.db.query<{ count: number }>(
    `select count(*)::int as count from chat.members where chat_id = $1 and left_at is null`,
    [id],
  )
  assert.equal(rows[0]!.count, 9)
  await chat.assertDense()
})
