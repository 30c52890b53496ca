/** Those who make a picture fit into 512×512, each told in its own way. */
import { type ChildProcess, fork, spawn } from 'node:child_process'
import path from 'node:path'
import { type HttpClient, makeHttpClient } from '../support/http-client.ts'
import type { Fit } from './shape.ts'

export interface Picture {
  /** A file of this machine. */
  path: string
  /** The same, as Capstan's. */
  id: string
}

export interface Contestant {
  /** Answers the size of what was made. */
  make(picture: Picture, fit: Fit): Promise<number>
  /** Whose memory counts. */
  pid: number | undefined
  close(): void
}

export function makeCapstanContestant({ url, token, pid }: { url: string; token: string; pid: number }): Contestant {
  const headers = { authorization: `Bearer ${token}` }
  const idle: HttpClient[] = []
  return {
    pid,
    async make({ id }, { width, height, quality }) {
      const word = `width=${width},height=${height},format=jpeg,quality=${quality}`
      const client = idle.pop() ?? (await makeHttpClient(Number(new URL(url).port)))
      const bytes = await client.get(`/v1/images/${id}/${word}`, headers)
      idle.push(client)
      return bytes
    },
    close() {
      for (const client of idle) client.close()
    },
  }
}

export function makeBareSharp(): Contestant {
  const child: ChildProcess = fork(path.join(import.meta.dirname, 'bare-sharp.ts'))
  const waiting = new Map<number, PromiseWithResolvers<number>>()
  let last = 0
  child.on('message', ({ id, bytes, error }: { id: number; bytes?: number; error?: string }) => {
    if (bytes === undefined) waiting.get(id)?.reject(new Error(error))
    else waiting.get(id)?.resolve(bytes)
    waiting.delete(id)
  })
  return {
    pid: child.pid,
    make(picture, fit) {
      const answer = Promise.withResolvers<number>()
      waiting.set(++last, answer)
      child.send({ id: last, path: picture.path, fit })
      return answer.promise
    },
    close: () => child.disconnect(),
  }
}

export function makeVipsthumbnail(folder: string): Contestant {
  let last = 0
  return {
    pid: undefined,
    make({ path: file }, { width, height, quality }) {
      const output = path.join(folder, `vips-${last++ % 16}.jpg`)
      const args = [file, '--size', `${width}x${height}>`, '-o', `${output}[Q=${quality}]`]
      const child = spawn('vipsthumbnail', args, {
        stdio: 'ignore',
        env: { PATH: process.env.PATH, VIPS_CONCURRENCY: '1' },
      })
      return new Promise((resolve, reject) => {
        child.once('error', reject)
        child.once('exit', code => (code === 0 ? resolve(1) : reject(new Error(`vipsthumbnail ended with ${code}`))))
      })
    },
    close() {},
  }
}
