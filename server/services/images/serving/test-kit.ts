/** A server of images and what tests of transforms made on the fly do with it. */
import assert from 'node:assert/strict'
import { connect, type Socket } from 'node:net'
import { promisify } from 'node:util'
import { atEnd } from '../../../../test/support/at-end.ts'
import { until } from '../../../../test/support/until.ts'
import type { Work } from '../processing/types.ts'
import { type Added, type ImageServer, makeImageServer } from './test-support.ts'

/** Transforms of an image that are kept. */
export const keptMax = 5

/** It listens, and keeps at most `keptMax` transforms of an image. */
export async function makeMakingKit() {
  const server = await makeImageServer({
    IMAGE_PRESETS: 'small:width=64,format=webp',
    IMAGE_TRANSFORMS_MAX: String(keptMax),
  })
  await server.app.listen({ port: 0, host: '127.0.0.1' })

  return {
    server,

    /** As ann, who owns it. */
    async get(image: Added, word: string) {
      const answer = await server.get('ann', at(image, word))
      const code = answer.statusCode < 400 ? '' : ` ${answer.json().code}`
      return { ...answer, shown: `${answer.statusCode}${code}`, bytes: answer.rawPayload, headers: answer.headers }
    },

    /** Waits until nothing is under way; `count` transforms of it are kept then. */
    async settled(image: Added, count: number) {
      await until(() => server.serving.making === 0)
      assert.equal((await server.keptOf(image.fileId)).length, count)
      assert.deepEqual(await server.unfinished(), [])
    },

    /** Holds all work until it is let go. */
    hold: () => holdWorks(server, () => true),

    /** Holds what is so wide, so that something is being made all the time. */
    holdWidth: (width: number) => holdWorks(server, work => work.outputs[0]!.transform.width === width),
  }
}

/** The address of a transform. */
export function at({ id }: { id: string }, word: string): string {
  return `/v1/images/${id}/${word}`
}

function holdWorks(server: ImageServer, isHeld: (work: Work) => boolean): () => void {
  const { promise, resolve } = Promise.withResolvers<void>()
  server.hooks.beforeWork = work => (isHeld(work) ? promise : Promise.resolve())
  const release = () => {
    server.hooks.beforeWork = undefined
    resolve()
  }
  // A test that fails would else keep the server from stopping.
  atEnd(release)
  return release
}

/** Asks over a socket, which the test then ends. */
export function askAndLeave(server: ImageServer, path: string): Socket {
  const { port } = server.app.server.address() as { port: number }
  const socket = connect(port, '127.0.0.1')
  socket.on('error', () => {})
  socket.write(`GET ${path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ann\r\n\r\n`)
  return socket
}

/** Until the server knows. */
export async function goAway(server: ImageServer, socket: Socket) {
  const { server: listener } = server.app
  const connections = () => promisify(listener.getConnections.bind(listener))()
  const before = await connections()
  socket.destroy()
  await until(async () => (await connections()) < before)
}
