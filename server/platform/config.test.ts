import assert from 'node:assert/strict'
import { test } from 'node:test'
import { flag, integer, oneOf, optionalText, readSettings, SettingsError, url } from './config.ts'

const table = {
  COUNT: integer(5, { min: 1, max: 10 }, 'How many.'),
  MODE: oneOf(['a', 'b'], 'a', 'Which.'),
  ON: flag(false, 'Whether.'),
  STORE: url(['postgres'], 'Where.'),
  SECRET: optionalText('What nobody may see.', { secret: true }),
}

test('what is not set has its default', () => {
  assert.deepEqual(readSettings(table, { COUNT: '' }), {
    COUNT: 5,
    MODE: 'a',
    ON: false,
    STORE: undefined,
    SECRET: undefined,
  })
})

test('what is set is read', () => {
  const environment = { COUNT: '7', MODE: 'b', ON: 'true', STORE: 'postgres://h/d', SECRET: 's' }
  assert.deepEqual(readSettings(table, environment), {
    COUNT: 7,
    MODE: 'b',
    ON: true,
    STORE: 'postgres://h/d',
    SECRET: 's',
  })
})

test('a socket’s connection string, which is no URL to anybody else, is taken', () => {
  const text = 'postgres://capstan@/capstan?host=%2Fvar%2Frun'
  assert.equal(readSettings(table, { STORE: text }).STORE, text)
  assert.throws(() => readSettings(table, { STORE: 'postgres:' }), SettingsError)
})

test('every wrong variable is named at once, with what would be right, and no secret is shown', () => {
  const environment = { COUNT: '1e1', MODE: 'c', ON: 'yes', STORE: 'mysql://user:hunter2@h/d' }
  assert.throws(
    () => readSettings(table, environment),
    (error: unknown) => {
      assert.ok(error instanceof SettingsError)
      assert.equal(error.message.split('\n').length, 4)
      assert.match(error.message, /COUNT is "1e1", but it must be a whole number from 1 to 10\./)
      assert.match(error.message, /MODE is "c", but it must be one of: a, b\./)
      assert.doesNotMatch(error.message, /hunter2/)
      return true
    },
  )
})

for (const text of ['0', '11', '-3', '2.5', ' 3', '0x4', 'NaN']) {
  test(`a whole number from 1 to 10 is not ${JSON.stringify(text)}`, () => {
    assert.throws(() => readSettings(table, { COUNT: text }), SettingsError)
  })
}
