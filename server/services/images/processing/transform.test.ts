import assert from 'node:assert/strict'
import { test } from 'node:test'
import { isAppError } from '#platform/errors.ts'
import type { ImageFacts } from '../types.ts'
import { canonical, chooseFormat, defaultPresets, parsePresets, parseTransform } from './transform.ts'

const presets = parsePresets(defaultPresets)

test('all ways to say the same are one text', () => {
  const cases: [text: string, canonical: string][] = [
    ['width=512', 'width=512,format=auto'],
    ['format=webp,height=9,width=512', 'width=512,height=9,format=webp'],
    ['width=5,fit=inside,position=centre,format=auto', 'width=5,format=auto'],
    ['width=5,height=6,position=attention,fit=cover', 'width=5,height=6,fit=cover,position=attention,format=auto'],
    ['width=05', 'width=5,format=auto'],
    ['background=FFaa00,format=jpeg', 'format=jpeg,background=ffaa00'],
    ['crop=10.20.300.400,format=png', 'crop=10.20.300.400,format=png'],
    ['format=jpeg,quality=80', 'format=jpeg'],
    ['format=avif,quality=50', 'format=avif'],
    ['format=avif,quality=80', 'format=avif,quality=80'],
    ['format=auto,quality=80', 'format=auto,quality=80'],
    ['format=png,quality=3', 'format=png'],
    ['thumbnail', 'width=256,height=256,fit=cover,format=webp'],
  ]
  for (const [text, expected] of cases) {
    const transform = parseTransform(text, presets)
    assert.equal(canonical(transform), expected)
    assert.equal(canonical(parseTransform(expected, presets)), expected)
  }
})

test('what is wrong is refused with a sentence that says what would be right', () => {
  const cases: [text: string, says: RegExp][] = [
    ['', /no preset ``.*`thumbnail`, `card`, `full`/],
    ['huge', /no preset `huge`/],
    ['widht=5', /no `widht`\. There are width, height, fit/],
    ['width=5,', /no ``/],
    ['width=5,width=5', /`width` stands in it twice/],
    ['width=0', /no whole number from 1 to 8192/],
    ['width=8193', /no whole number from 1 to 8192/],
    ['width=1e3', /no whole number/],
    ['width=-5', /no whole number/],
    ['width= 5', /no whole number/],
    ['width=', /no whole number/],
    ['quality=0', /from 1 to 100/],
    ['quality=101', /from 1 to 100/],
    ['format=svg', /It is one of jpeg, png, webp, avif, gif, auto/],
    ['fit=outside', /inside, cover, contain, fill/],
    ['fit=cover,width=5', /needs both/],
    ['position=top,width=5', /`position` says what `fit=cover` keeps/],
    ['crop=1.2.3', /left\.top\.width\.height/],
    ['crop=1.2.0.4', /`crop=0` is no whole number from 1/],
    ['background=red', /six hexadecimal digits/],
    ['__proto__=1', /no `__proto__`/],
    [`width=${'9'.repeat(5000)}`, /^.{1,150}$/],
  ]
  for (const [text, says] of cases) {
    assert.throws(
      () => parseTransform(text, presets),
      error => isAppError(error) && error.code === 'bad_transform' && error.status === 400 && says.test(error.message),
      text,
    )
  }
})

test('presets that are wrong say which and why', () => {
  assert.deepEqual([...presets.keys()], ['thumbnail', 'card', 'full'])
  assert.equal(parsePresets('').size, 0)
  assert.deepEqual([...parsePresets(' a:width=5 ; b:height=6,format=png;').keys()], ['a', 'b'])
  const cases: [text: string, says: RegExp][] = [
    ['width=5', /does not begin with a name/],
    ['original:width=5', /does not begin with a name/],
    ['A:width=5', /does not begin with a name/],
    ['a:width=5;a:width=6', /`a` stands in it twice/],
    ['a:width=0', /the preset `a` is wrong.*from 1 to 8192/],
    ['a:', /the preset `a` is wrong/],
    [Array.from({ length: 33 }, (_, n) => `p${n}:width=5`).join(';'), /at most 32/],
  ]
  for (const [text, says] of cases) assert.throws(() => parsePresets(text), { message: says }, text)
})

const photo: ImageFacts = {
  format: 'jpeg',
  width: 9,
  height: 9,
  orientation: 1,
  frames: 1,
  progressive: false,
  bitsPerSample: 8,
  channels: 3,
}
const inks: ImageFacts = { ...photo, channels: 4 }
const logo: ImageFacts = { ...photo, format: 'png', channels: 4 }
const animation: ImageFacts = { ...photo, format: 'gif', frames: 9 }
const pages: ImageFacts = { ...photo, format: 'tiff', frames: 9 }

test('the format is what the client likes best and the image allows', () => {
  const chrome = 'image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8'
  const cases: [accept: string | undefined, facts: ImageFacts, format: string][] = [
    [undefined, photo, 'jpeg'],
    [undefined, inks, 'jpeg'],
    [undefined, logo, 'png'],
    [undefined, animation, 'gif'],
    [undefined, pages, 'jpeg'],
    ['', photo, 'jpeg'],
    ['*/*', photo, 'jpeg'],
    ['image/*', logo, 'png'],
    [chrome, photo, 'webp'],
    [chrome, logo, 'webp'],
    [chrome, animation, 'webp'],
    ['image/avif,*/*', photo, 'avif'],
    ['image/avif,*/*', animation, 'gif'],
    ['image/webp;q=0.8,image/avif', photo, 'avif'],
    ['image/webp;q=0.5,*/*', photo, 'jpeg'],
    ['image/webp;q=0,*/*', photo, 'jpeg'],
    ['IMAGE/WEBP ; Q=1', photo, 'webp'],
    ['image/webp;q=nonsense,image/*', photo, 'jpeg'],
    ['image/png', photo, 'png'],
    ['image/png,image/*;q=0.8', photo, 'jpeg'],
    ['text/html', photo, 'jpeg'],
  ]
  const transform = parseTransform('width=5', presets)
  for (const [accept, facts, format] of cases) {
    assert.equal(chooseFormat(transform, accept, facts), format, `${accept} ${facts.format}`)
  }
  assert.equal(chooseFormat({ ...transform, format: 'gif' }, chrome, photo), 'gif')
})
