import assert from 'node:assert/strict'
import { test } from 'node:test'
import { cacheControl, contentDisposition } from './headers.ts'

test('a file’s name stands in the header whole and harmless, with the extension of what it is', () => {
  const cases: [name: string, header: string][] = [
    ['hill.jpg', 'inline; filename="hill.webp"'],
    ['hill', 'inline; filename="hill.webp"'],
    ['a.b.c', 'inline; filename="a.b.webp"'],
    ['evil.html', 'inline; filename="evil.webp"'],
    ['.htaccess', 'inline; filename="image.webp"'],
    ['my hill (1).png', 'inline; filename="my hill (1).webp"'],
    ['a"b\\c', `inline; filename="a_b_c.webp"; filename*=UTF-8''a%22b%5Cc.webp`],
    ['100%25', `inline; filename="100_25.webp"; filename*=UTF-8''100%2525.webp`],
    ['été.png', `inline; filename="_t_.webp"; filename*=UTF-8''%C3%A9t%C3%A9.webp`],
    [`it's (so)*! é`, `inline; filename="it's (so)_! _.webp"; filename*=UTF-8''it%27s%20%28so%29%2A%21%20%C3%A9.webp`],
    [
      'a\r\nSet-Cookie: x=1',
      `inline; filename="a__Set-Cookie_ x=1.webp"; filename*=UTF-8''a%0D%0ASet-Cookie%3A%20x%3D1.webp`,
    ],
    ['🦉', `inline; filename="__.webp"; filename*=UTF-8''%F0%9F%A6%89.webp`],
    ['half \ud83e', `inline; filename="half _.webp"; filename*=UTF-8''half%20%EF%BF%BD.webp`],
  ]
  for (const [name, header] of cases) {
    const shown = contentDisposition({ type: 'inline', name, format: 'webp' })
    assert.equal(shown, header)
    assert.doesNotMatch(shown, /[^\x20-\x7e]/)
  }
  assert.equal(contentDisposition({ type: 'attachment', name: 'a', format: 'jpeg' }), 'attachment; filename="a.jpg"')
})

test('who may keep an answer follows from who may see it', () => {
  assert.equal(cacheControl({ by: 'public' }), 'public, max-age=86400')
  assert.equal(cacheControl({ by: 'owner' }), 'private, no-cache')
  assert.equal(cacheControl({ by: 'link', seconds: 5 }), 'private, max-age=5')
  assert.equal(cacheControl({ by: 'link', seconds: 1_000_000 }), 'private, max-age=86400')
})
