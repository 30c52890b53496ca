/** The `capstan` command about users, as somebody types it. */
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import path from 'node:path'
import { test } from 'node:test'
import { makeTestDatabase } from '../test/support/database.ts'

const { db, url } = await makeTestDatabase()
const password = 'correct horse'

interface Ended {
  code: number
  stdout: string
  stderr: string
}

/** Runs a command on the test's database, with the password piped in. */
function capstan(...args: string[]): Promise<Ended> {
  return new Promise(resolve => {
    const env = { PATH: process.env.PATH, DATABASE_URL: url, AUTH_SECRET: 'a secret of tests, long enough to be one' }
    const command = execFile(
      process.execPath,
      ['server/main.ts', ...args],
      { cwd: path.resolve(import.meta.dirname, '..'), env },
      (error, stdout, stderr) => resolve({ code: Number(error?.code ?? 0), stdout, stderr }),
    )
    // A command that refuses its arguments does not wait for the password.
    command.stdin!.on('error', () => {})
    command.stdin!.end(`${password}\n`)
  })
}

async function roleOf(username: string): Promise<string | undefined> {
  const { rows } = await db.query<{ role: string }>(`select role from identity.users where username = $1`, [username])
  return rows[0]?.role
}

test('a user is made with a role, and without one as a user', async () => {
  const cases: [name: string, args: string[], role: string][] = [
    ['una', [], 'user'],
    ['bea', ['--role', 'banker'], 'banker'],
    ['ada', ['--role', 'admin'], 'admin'],
    ['abe', ['--admin'], 'admin'],
  ]
  for (const [name, args, role] of cases) {
    const made = await capstan('user', 'create', name, '--password-stdin', ...args)
    assert.equal(made.code, 0, made.stderr)
    assert.match(made.stdout, new RegExp(`^Made the ${role} ${name} `))
    assert.equal(await roleOf(name), role)
  }
})

test('a role is changed to one that there is', async () => {
  // The last admin could not become a user.
  await capstan('user', 'create', 'amy', '--password-stdin', '--role', 'admin')
  await capstan('user', 'create', 'tom', '--password-stdin')
  for (const role of ['banker', 'admin', 'user']) {
    const changed = await capstan('user', 'role', 'tom', role)
    assert.deepEqual([changed.code, changed.stdout], [0, `tom is now ${role}.\n`], changed.stderr)
    assert.equal(await roleOf('tom'), role)
  }
})

test('a role that there is not is refused with the ones there are', async () => {
  await capstan('user', 'create', 'kim', '--password-stdin')
  const cases = [
    ['user', 'create', 'king', '--role', 'king', '--password-stdin'],
    ['user', 'role', 'kim', 'king'],
    ['user', 'role', 'kim'],
  ]
  for (const args of cases) {
    const refused = await capstan(...args)
    assert.deepEqual([refused.code, refused.stderr], [1, 'A role is one of user, banker, admin.\n'], args.join(' '))
  }
  assert.equal(await roleOf('king'), undefined)
  assert.equal(await roleOf('kim'), 'user')
})
