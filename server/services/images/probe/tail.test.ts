import assert from 'node:assert/strict'
import { test } from 'node:test'
import { checkNoArchive, makeTail } from './tail.ts'

test('the tail is what came last, however it was cut', () => {
  const bytes = Buffer.from(Array.from({ length: 100 }, (_, index) => index))
  for (let size = 1; size <= 12; size++) {
    for (let chunkBytes = 1; chunkBytes <= 30; chunkBytes++) {
      const tail = makeTail(size)
      for (let at = 0; at < bytes.length; at += chunkBytes) {
        tail.push(bytes.subarray(at, at + chunkBytes))
        const come = bytes.subarray(0, at + chunkBytes)
        assert.deepEqual(tail.bytes(), come.subarray(-size), `${size} of ${come.length}, by ${chunkBytes}`)
      }
    }
  }
})

test('the mark of an archive by chance is none', () => {
  const photo = Buffer.alloc(500, 0x5a)
  photo.write('PK\x05\x06', 400, 'latin1')
  checkNoArchive(photo.fill(1, 404, 406))
  photo.write('PK\x05\x06', 490, 'latin1')
  checkNoArchive(photo)
  photo.fill(0, 404, 422)
  assert.throws(() => checkNoArchive(photo), /ZIP/)
})
