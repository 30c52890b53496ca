/** What `BLOB_URL` says. It carries no keys: those of S3 have settings of their own. */

export interface FolderTarget {
  kind: 'file'
  /** As given: relative to where Capstan was started, or absolute. */
  folder: string
}

export interface BucketTarget {
  kind: 's3'
  bucket: string
  /** Stands before every key, without slashes at its ends; may be empty. */
  prefix: string
  /** Undefined for Amazon's own. */
  endpoint: string | undefined
  /** Undefined leaves it to the environment. */
  region: string | undefined
  /** `http://host/bucket/key` and not `http://bucket.host/key`. */
  pathStyle: boolean
}

const known = ['endpoint', 'region', 'path_style']
/** Servers other than Amazon's ask for some region and mostly mean this one. */
const regionElsewhere = 'us-east-1'

/** @throws an Error whose message says what would be right */
export function parseBlobUrl(text: string): FolderTarget | BucketTarget {
  if (/^file:/i.test(text)) return parseFolder(text)
  if (/^s3:/i.test(text)) return parseBucket(text)
  throw new Error('it must start with file: or s3:.')
}

/** Not by `URL`, which makes `file:blobs` the folder /blobs. */
function parseFolder(text: string): FolderTarget {
  const rest = text.slice('file:'.length)
  if (/^\/\/[^/]/.test(rest)) throw new Error('a file: URL names no host: write file:/folder or file:///folder.')
  const folder = rest.replace(/^\/+/, '/')
  if (folder === '' || folder === '/') throw new Error('it must name a folder, as in file:/var/lib/capstan/blobs.')
  return { kind: 'file', folder }
}

function parseBucket(text: string): BucketTarget {
  if (!URL.canParse(text)) throw new Error('it must be a URL, as in s3://bucket/prefix.')
  const url = new URL(text)
  if (url.username !== '' || url.password !== '') {
    throw new Error('keys have settings of their own: S3_ACCESS_KEY_ID and S3_SECRET_ACCESS_KEY.')
  }
  if (!/^[a-z0-9][a-z0-9._-]+$/i.test(url.host)) throw new Error('it must name a bucket, as in s3://bucket/prefix.')
  const prefix = url.pathname.replace(/^\/+|\/+$/g, '')
  if (!/^[\w./-]*$/.test(prefix) || /(^|\/)\.{0,2}(\/|$)/.test(prefix || 'none')) {
    throw new Error('its prefix must be words of letters, digits, . _ and - joined by /.')
  }
  const wrong = [...url.searchParams.keys()].find(name => !known.includes(name))
  if (wrong !== undefined) throw new Error(`it knows no ${wrong}, only ${known.join(', ')}.`)
  const endpoint = parseEndpoint(url.searchParams.get('endpoint'))
  return {
    kind: 's3',
    bucket: url.host,
    prefix,
    endpoint,
    region: url.searchParams.get('region') || (endpoint ? regionElsewhere : undefined),
    pathStyle: parsePathStyle(url.searchParams.get('path_style')) ?? endpoint !== undefined,
  }
}

function parseEndpoint(text: string | null): string | undefined {
  if (text === null) return undefined
  const url = URL.canParse(text) ? new URL(text) : undefined
  if (!url || !/^https?:$/.test(url.protocol) || url.username !== '' || url.password !== '') {
    throw new Error('its endpoint must be like https://s3.example.com, with no user in it.')
  }
  return text.replace(/\/+$/, '')
}

function parsePathStyle(text: string | null): boolean | undefined {
  if (text === null) return undefined
  if (text !== 'true' && text !== 'false') throw new Error('its path_style must be true or false.')
  return text === 'true'
}
