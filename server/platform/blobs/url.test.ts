import assert from 'node:assert/strict'
import { test } from 'node:test'
import { platformSettings, readSettings, SettingsError } from '../config.ts'
import { type BucketTarget, parseBlobUrl } from './url.ts'

test('a file: URL names a folder, also one relative to here', () => {
  const cases = [
    ['file:/var/blobs', '/var/blobs'],
    ['file:///var/blobs', '/var/blobs'],
    ['FILE:/var/blobs', '/var/blobs'],
    ['file:blobs', 'blobs'],
    ['file:./data/my blobs', './data/my blobs'],
  ]
  for (const [text, folder] of cases) assert.deepEqual(parseBlobUrl(text!), { kind: 'file', folder })
})

test('an s3: URL names a bucket and, where it is not Amazon’s, a server', () => {
  const amazon: BucketTarget = {
    kind: 's3',
    bucket: 'my-bucket',
    prefix: '',
    endpoint: undefined,
    region: undefined,
    pathStyle: false,
  }
  const endpoint = 'http://127.0.0.1:9000'
  const elsewhere = { ...amazon, endpoint, region: 'us-east-1', pathStyle: true }
  const cases: [text: string, target: BucketTarget][] = [
    ['s3://my-bucket', amazon],
    ['s3://my-bucket/', amazon],
    ['s3://my-bucket/a/b.c/', { ...amazon, prefix: 'a/b.c' }],
    ['s3://my-bucket?region=eu-central-1', { ...amazon, region: 'eu-central-1' }],
    [`s3://my-bucket?endpoint=${endpoint}/`, elsewhere],
    [`s3://my-bucket?endpoint=${endpoint}&path_style=false&region=x`, { ...elsewhere, pathStyle: false, region: 'x' }],
  ]
  for (const [text, target] of cases) assert.deepEqual(parseBlobUrl(text), target, text)
})

test('a wrong one stops the start with a sentence that shows no secret', () => {
  const cases: [text: string, sentence: RegExp][] = [
    ['blobs', /must start with file: or s3:/],
    ['https://bucket', /must start with file: or s3:/],
    ['file:', /must name a folder/],
    ['file:///', /must name a folder/],
    ['file://host/folder', /names no host/],
    ['s3:', /must name a bucket/],
    ['s3:///prefix', /must name a bucket/],
    ['s3://bucket:9000', /must name a bucket/],
    ['s3://bucket/a b', /prefix must be words/],
    ['s3://bucket/a//b', /prefix must be words/],
    ['s3://id:hidden-word@bucket', /keys have settings of their own/],
    ['s3://bucket?secret=hidden-word', /knows no secret, only endpoint, region, path_style/],
    ['s3://bucket?endpoint=host:9000', /endpoint must be like/],
    ['s3://bucket?endpoint=https://id:hidden-word@host', /endpoint must be like/],
    ['s3://bucket?path_style=yes', /path_style must be true or false/],
  ]
  for (const [text, sentence] of cases) {
    assert.throws(
      () => readSettings(platformSettings, { BLOB_URL: text }),
      (error: Error) => {
        assert.ok(error instanceof SettingsError, text)
        assert.match(error.message, sentence, text)
        assert.doesNotMatch(error.message, /hidden-word/, text)
        return true
      },
    )
  }
})
