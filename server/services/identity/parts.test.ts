import assert from 'node:assert/strict'
import { mkdtempSync, readdirSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, test } from 'node:test'
import { readSettings } from '#platform/config.ts'
import { makeRecentMap } from '#platform/recent-map.ts'
import { makeGate } from './gate.ts'
import { makePasswords } from './passwords.ts'
import { resolveSecret } from './secret.ts'
import { identitySettings } from './settings.ts'

const folder = mkdtempSync(path.join(tmpdir(), 'capstan-secret-'))
after(() => rmSync(folder, { recursive: true, force: true }))

test('the secret is made once, for its owner’s eyes, and kept', () => {
  const given = { configured: undefined, mustBeConfigured: false, folder: path.join(folder, 'deep/er') }
  const first = resolveSecret(given)
  assert.ok(first.length >= 43)
  assert.equal(resolveSecret(given), first)
  assert.deepEqual(readdirSync(given.folder), ['auth-secret'])
  assert.equal(statSync(path.join(given.folder, 'auth-secret')).mode & 0o777, 0o600)
  assert.equal(resolveSecret({ ...given, configured: 'x' }), 'x')
  assert.throws(() => resolveSecret({ ...given, mustBeConfigured: true }), /AUTH_SECRET is not set/)
})

test('a secret that is too short stops the start and is not printed', () => {
  assert.throws(() => readSettings(identitySettings, { AUTH_SECRET: 'short one' }), {
    message: 'AUTH_SECRET is (hidden), but it must have at least 32 characters.',
  })
})

test('a gate lets so many in, makes so many wait and refuses the rest', async () => {
  const gate = makeGate({ name: 'things', concurrency: 2, waitingMax: 3 })
  let running = 0
  let most = 0
  const release: (() => void)[] = []
  const task = async () => {
    most = Math.max(most, ++running)
    await new Promise<void>(resolve => release.push(resolve))
    running--
  }
  const outcomes = Promise.allSettled(Array.from({ length: 8 }, () => gate.run(task)))
  for (let done = 0; done < 5; done++) {
    await new Promise(resolve => setImmediate(resolve))
    release.shift()!()
  }
  const statuses = (await outcomes).map(outcome => outcome.status)
  assert.deepEqual(statuses, [...Array(5).fill('fulfilled'), ...Array(3).fill('rejected')])
  assert.equal(most, 2)
  await assert.rejects(
    gate.run(async () => {
      throw new Error('no')
    }),
    /no/,
  )
  assert.equal(await gate.run(async () => 7), 7)
})

test('a recent map keeps what is asked for and stays within its limit', () => {
  const map = makeRecentMap<number>(100)
  map.set('kept', -1)
  for (let index = 0; index < 1000; index++) {
    map.set(`key ${index}`, index)
    assert.equal(map.get('kept'), -1)
    assert.ok(map.size <= 100)
  }
  assert.equal(map.get('key 0'), undefined)
  assert.equal(map.get('key 999'), 999)
  assert.equal([...map.values()].length, map.size)
  map.delete('kept')
  assert.equal(map.get('kept'), undefined)
})

test('passwords are hashed with Argon2id as OWASP asks, and never twice alike', async () => {
  const passwords = makePasswords({ mode: 'production', queueMax: 10 })
  const [first, second] = [await passwords.hash('correct horse'), await passwords.hash('correct horse')]
  assert.match(first, /^\$argon2id\$v=19\$m=19456,t=2,p=1\$/)
  assert.notEqual(first, second)
  assert.equal(await passwords.verify({ hash: first, password: 'correct horse' }), true)
  assert.equal(await passwords.verify({ hash: first, password: 'correct horsf' }), false)
  assert.throws(() => passwords.assertFit('username', 'Username'), { code: 'weak_password' })
  assert.throws(() => passwords.assertFit('seven77', 'user'), { code: 'weak_password' })
  passwords.assertFit('eight888', 'user')
})
