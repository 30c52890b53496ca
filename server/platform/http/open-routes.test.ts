import assert from 'node:assert/strict'
import { test } from 'node:test'
import { type Environment, platformSettings, readSettings } from '../config.ts'
import { makeOpenRoutes } from './open-routes.ts'

function isOpen(environment: Environment, path = '/api/send'): boolean {
  return makeOpenRoutes(readSettings(platformSettings, environment)).has(path)
}

test('the old routes are open in development, in production only those that are named', () => {
  const cases: [environment: Environment, path: string, open: boolean][] = [
    [{}, '/api/send', true],
    [{ NODE_ENV: 'test' }, '/api/send', true],
    [{ NODE_ENV: 'production' }, '/api/send', false],
    [{ OPEN_ROUTES: 'none' }, '/api/send', false],
    [{ OPEN_ROUTES: '/api/pull, /course' }, '/api/send', false],
    [{ OPEN_ROUTES: '/api/pull, /course' }, '/course', true],
    [{ NODE_ENV: 'production', OPEN_ROUTES: '/api/send' }, '/api/send', true],
    [{ NODE_ENV: 'production', OPEN_ROUTES: '/api/send' }, '/api/pull', false],
  ]
  for (const [environment, path, open] of cases) {
    assert.equal(isOpen(environment, path), open, `${JSON.stringify(environment)} ${path}`)
  }
})

test('what is no list of paths stops the start', () => {
  for (const text of ['api/send', '/api/send,', 'all', '/a b']) {
    assert.throws(() => isOpen({ OPEN_ROUTES: text }), /OPEN_ROUTES/)
  }
})
