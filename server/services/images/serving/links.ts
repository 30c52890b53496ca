/** Signed links: whoever has one sees one transform of one image until it expires, and nobody has to log in. */
import { createHmac, timingSafeEqual } from 'node:crypto'
import type { Database } from '#platform/database/pool.ts'
import { ensureSecret } from '#platform/database/secrets.ts'
import { errors } from './errors.ts'

/** What is signed. */
export interface Linked {
  id: string
  /** The transform as it stands in the address. */
  word: string
  /** Unix seconds. */
  expires: number
}

/** As they came with a request. */
export interface Signed {
  id: string
  word: string
  expires?: string | undefined
  signature?: string | undefined
}

export interface Links {
  /** The address without a host. */
  pathTo(linked: Linked): Promise<string>
  /** Answers for how many seconds it is still good. @throws link_invalid, link_expired */
  check(signed: Signed): Promise<number>
}

const secretName = 'images.links'
const secretBytes = 32

export function makeLinks({ db, clock }: { db: Database; clock: () => number }): Links {
  let secret: Promise<Buffer> | undefined

  /** One key for all processes of a database. */
  function getSecret(): Promise<Buffer> {
    secret ??= ensureSecret(db, { name: secretName, bytes: secretBytes }).catch(error => {
      secret = undefined
      throw error
    })
    return secret
  }

  async function sign({ id, word, expires }: Linked): Promise<string> {
    return createHmac('sha256', await getSecret())
      .update(`${id}\n${word}\n${expires}`)
      .digest('base64url')
  }

  return {
    async pathTo(linked) {
      // Kept readable: both signs may stand in a path as they are.
      const word = encodeURIComponent(linked.word).replaceAll('%3D', '=').replaceAll('%2C', ',')
      return `/v1/images/${linked.id}/${word}?expires=${linked.expires}&signature=${await sign(linked)}`
    },
    async check({ id, word, expires, signature }) {
      if (signature === undefined || !/^\d{1,12}$/.test(expires ?? '')) throw errors.linkInvalid()
      const linked = { id, word, expires: Number(expires) }
      if (!isEqual(signature, await sign(linked))) throw errors.linkInvalid()
      const seconds = linked.expires - Math.floor(clock() / 1000)
      if (seconds <= 0) throw errors.linkExpired()
      return seconds
    },
  }
}

/** In a time that tells nothing about where they differ. */
function isEqual(given: string, right: string): boolean {
  const [a, b] = [Buffer.from(given), Buffer.from(right)]
  return a.length === b.length && timingSafeEqual(a, b)
}
