import assert from 'node:assert/strict'
import { type TestContext, test } from 'node:test'
import type { Bus } from '../bus.ts'
import { makePresence } from './presence.ts'
import { makeRooms, type PresenceChange } from './rooms.ts'
import { upTo } from './test-kit.ts'

const topic = 'chats/a'
const second = 1000
const stepMs = 100

interface Process {
  presence: ReturnType<typeof makePresence>
  /** What its followers were told, in order. */
  told: PresenceChange[]
  /** It hears and says nothing more. */
  crash(): void
  /** Everything published, as it lay on the wire. */
  sent: string[]
  gap(): void
}

/** Processes whose buses deliver at once, unless the test loses what is on its way, under a clock that stands still. */
function makeCluster(t: TestContext) {
  t.mock.timers.enable({ apis: ['setInterval', 'Date'] })
  const buses = new Set<{ hear: (items: readonly string[]) => void; isDead: boolean }>()
  const cluster = {
    isLosing: false,
    /** Of those on their way just now, which are lost. */
    loses: (_item: string) => false,
    hearAll(item: string) {
      for (const bus of buses) bus.hear([item])
    },
    pass(ms: number) {
      // In steps, as the clock shows the end of a step to whatever happens in it.
      for (let passed = 0; passed < ms; passed += stepMs) t.mock.timers.tick(stepMs)
    },
    add(): Process {
      const own = { hear: (_items: readonly string[]) => {}, isDead: false }
      buses.add(own)
      const sent: string[] = []
      let onGap = () => {}
      const bus: Pick<Bus, 'publish' | 'subscribe' | 'onGap'> = {
        publish(_channel, items) {
          if (own.isDead) return
          sent.push(...items)
          const arriving = items.filter(item => !cluster.isLosing && !cluster.loses(item))
          for (const other of buses) if (other !== own && !other.isDead) other.hear(arriving)
        },
        subscribe(_channel, listener) {
          own.hear = listener
          return () => {
            own.hear = () => {}
          }
        },
        onGap(listener) {
          onGap = listener
          return () => {}
        },
      }
      const told: PresenceChange[] = []
      const presence = makePresence({ bus: bus as Bus, now: Date.now, onChange: (_topic, change) => told.push(change) })
      presence.start()
      t.after(() => presence.stop())
      return {
        presence,
        told,
        sent,
        crash: () => {
          own.isDead = true
        },
        gap: () => onGap(),
      }
    },
  }
  return cluster
}

const present = (...processes: Process[]) => processes.map(each => each.presence.present(topic))

test('who comes and goes is told in all processes, once, after the grace', t => {
  const cluster = makeCluster(t)
  const [one, two] = [cluster.add(), cluster.add()]
  one.presence.join(topic, 'ann')
  two.presence.join(topic, 'bob')
  assert.deepEqual(present(one, two), [['ann'], ['bob']])
  cluster.pass(second)
  assert.deepEqual(present(one, two), [
    ['ann', 'bob'],
    ['ann', 'bob'],
  ])
  two.presence.leave(topic, 'bob')
  cluster.pass(second)
  // Being told the whole picture meanwhile ends nobody's grace.
  one.gap()
  cluster.pass(second)
  assert.deepEqual(present(one, two), [
    ['ann', 'bob'],
    ['ann', 'bob'],
  ])
  cluster.pass(2 * second)
  assert.deepEqual(present(one, two), [['ann'], ['ann']])
  for (const { told } of [one, two]) {
    assert.deepEqual(told.flatMap(change => change.joined).sort(), ['ann', 'bob'])
    assert.deepEqual(told.at(-1), { count: 1, joined: [], left: ['bob'] })
    assert.equal(told.filter(change => change.left!.length > 0).length, 1)
  }
  assert.deepEqual(one.presence.present('chats/other'), [])
})

test('who reconnects within the grace, here or elsewhere, or has a second device, never leaves', t => {
  const cluster = makeCluster(t)
  const [one, two] = [cluster.add(), cluster.add()]
  one.presence.join(topic, 'ann')
  cluster.pass(second)
  for (const back of [one, two, one]) {
    for (const each of [one, two]) each.presence.leave(topic, 'ann')
    cluster.pass(2 * second)
    back.presence.join(topic, 'ann')
    cluster.pass(10 * second)
  }
  one.presence.join(topic, 'ann')
  two.presence.join(topic, 'ann')
  one.presence.leave(topic, 'ann')
  one.presence.leave(topic, 'ann')
  cluster.pass(10 * second)
  assert.deepEqual(present(one, two), [['ann'], ['ann']])
  for (const { told } of [one, two]) assert.deepEqual(told, [{ count: 1, joined: ['ann'], left: [] }])
  two.presence.leave(topic, 'ann')
  cluster.pass(10 * second)
  assert.deepEqual(present(one, two), [[], []])
})

test('whoever was connected to a process that died falls away, and later than one that said goodbye', t => {
  const cluster = makeCluster(t)
  const [stays, dies, stops] = [cluster.add(), cluster.add(), cluster.add()]
  dies.presence.join(topic, 'ann')
  stops.presence.join(topic, 'bob')
  stays.presence.join(topic, 'cleo')
  cluster.pass(second)
  dies.crash()
  stops.presence.stop()
  cluster.pass(2 * second)
  assert.deepEqual(present(stays), [['ann', 'bob', 'cleo']])
  cluster.pass(2 * second)
  assert.deepEqual(present(stays), [['ann', 'cleo']])
  cluster.pass(40 * second)
  assert.deepEqual(present(stays), [['ann', 'cleo']])
  cluster.pass(10 * second)
  assert.deepEqual(present(stays), [['cleo']])
  assert.deepEqual(
    stays.told.flatMap(change => change.left),
    ['bob', 'ann'],
  )
})

test('a process that lives is not forgotten, however long nothing happens, and its beats cost next to nothing', t => {
  const cluster = makeCluster(t)
  const [one, two] = [cluster.add(), cluster.add()]
  for (const n of upTo(500)) one.presence.join(topic, `user-${n}`)
  cluster.pass(5 * second)
  const before = one.sent.length
  cluster.pass(600 * second)
  assert.equal(two.presence.present(topic).length, 500)
  const beats = one.sent.slice(before)
  assert.ok(beats.length >= 29 && beats.length <= 31, `${beats.length} beats`)
  assert.ok(beats.every(item => item.length < 100))
})

test('what was lost on the way is made up for', t => {
  const cluster = makeCluster(t)
  const [one, two] = [cluster.add(), cluster.add()]
  one.presence.join(topic, 'goes')
  one.presence.join(topic, 'stays')
  cluster.pass(second)
  cluster.isLosing = true
  one.presence.leave(topic, 'goes')
  one.presence.join(topic, 'comes')
  cluster.pass(10 * second)
  cluster.isLosing = false
  assert.deepEqual(present(two), [['goes', 'stays']])
  cluster.pass(22 * second)
  assert.deepEqual(present(two), [['comes', 'stays']])
  // At once when something follows that shows it.
  cluster.isLosing = true
  one.presence.join(topic, 'lost')
  cluster.pass(second)
  cluster.isLosing = false
  one.presence.join(topic, 'next')
  cluster.pass(2 * second)
  assert.deepEqual(present(two), [['comes', 'lost', 'next', 'stays']])
  assert.deepEqual(
    two.told.flatMap(change => change.left),
    ['goes'],
    'nobody else was ever said to have left',
  )
})

test('a part of the whole picture that is lost makes nobody leave', t => {
  const cluster = makeCluster(t)
  const [one, two] = [cluster.add(), cluster.add()]
  const names = upTo(1000).map(n => `somebody-with-a-long-name-${n}`)
  for (const name of names) one.presence.join(topic, name)
  cluster.pass(5 * second)
  const before = two.told.length
  let parts = 0
  cluster.loses = item => item.includes('"kind":"all"') && parts++ % 3 === 1
  two.gap()
  cluster.pass(30 * second)
  assert.ok(parts > 10, `${parts} parts`)
  cluster.loses = () => false
  cluster.pass(30 * second)
  assert.equal(two.told.length, before)
  assert.equal(two.presence.present(topic).length, 1000)
})

test('a new process learns from the others who is there, and one that heard nothing for a while asks', t => {
  const cluster = makeCluster(t)
  const one = cluster.add()
  one.presence.join(topic, 'ann')
  cluster.pass(5 * second)
  const two = cluster.add()
  cluster.pass(2 * second)
  assert.deepEqual(present(two), [['ann']])
  cluster.isLosing = true
  one.presence.join(topic, 'bob')
  cluster.pass(second)
  cluster.isLosing = false
  two.gap()
  cluster.pass(2 * second)
  assert.deepEqual(present(two), [['ann', 'bob']])
})

test('in a crowd only the number is told, and rarely; each message fits the bus', t => {
  const cluster = makeCluster(t)
  const [one, two] = [cluster.add(), cluster.add()]
  // Texts that grow when they are written as JSON twice.
  const names = upTo(3000).map(n => `"ä😀\\"${n}`)
  for (const [at, name] of names.entries()) {
    one.presence.join(topic, name)
    if (at % 30 === 0) cluster.pass(100)
  }
  cluster.pass(5 * second)
  assert.deepEqual(two.presence.present(topic), names.toSorted())
  for (const { told } of [one, two]) {
    assert.ok(told.length < 20, `${told.length} changes in fifteen seconds`)
    assert.deepEqual(told.at(-1), { count: 3000 })
    assert.ok(told.every(change => (change.joined?.length ?? 0) <= 200))
  }
  assert.ok(one.sent.every(item => Buffer.byteLength(JSON.stringify(item)) < 7000))
})

test('who came and went, or went and came, before anybody was told is no news', () => {
  let now = 0
  const rooms = makeRooms({ now: () => now, windowMs: 200 })
  const told = () => {
    now += 200
    return rooms.takeDue(now)
  }
  rooms.enter(topic, 'ann')
  rooms.exit(topic, 'ann')
  assert.deepEqual(told(), [])
  rooms.enter(topic, 'ann')
  assert.deepEqual(told(), [{ topic, change: { count: 1, joined: ['ann'], left: [] } }])
  rooms.exit(topic, 'ann')
  rooms.enter(topic, 'ann')
  rooms.exit(topic, 'nobody')
  assert.deepEqual(told(), [])
  assert.deepEqual(rooms.present(topic), ['ann'])
})

test('what is no message of ours changes nothing', t => {
  const cluster = makeCluster(t)
  const one = cluster.add()
  one.presence.join(topic, 'ann')
  cluster.pass(second)
  for (const item of [
    '',
    'null',
    '7',
    '[]',
    '{}',
    '{"from":7,"n":1,"kind":"moves","moves":[]}',
    '{"from":"x","n":"1","kind":"moves","moves":[]}',
    '{"from":"x","n":1,"kind":"moves"}',
    '{"from":"x","n":1,"kind":"moves","moves":[[1,"chats/a"]]}',
    '{"from":"x","n":1,"kind":"moves","moves":[7]}',
  ]) {
    cluster.hearAll(item)
  }
  cluster.pass(second)
  assert.deepEqual(present(one), [['ann']])
})
