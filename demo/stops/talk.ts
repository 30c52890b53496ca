import { type Context, expect, type Stop, TourError } from '../stop.ts'
import { pause } from '../support/api.ts'

interface Message {
  seq: number
  text: string
  sender: string
}

const before = 5
const missed = 20
const pollMs = 10
const patienceMs = 10_000

export const talk: Stop = {
  title: 'Two who talk',
  async run(context) {
    const { makeUser, say, signal } = context
    const [gus, hal] = [await makeUser('gus'), await makeUser('hal')]
    const { id } = await gus.post<{ id: string }>('/v1/chats', { kind: 'direct', with: 'hal' })
    const send = (text: string) => gus.post<Message>(`/v1/chats/${id}/messages`, { text })
    /** What was just written can be found a moment later. */
    const find = async (word: string): Promise<string> => {
      for (;;) {
        const { messages } = await gus.get<{ messages: Message[] }>(`/v1/chats/${id}/search?q=${word}`)
        if (messages[0]) return `number ${messages[0].seq}`
        await pause(pollMs, signal)
      }
    }
    const seen: Message[] = []
    const listening = await listen(context, { token: hal.token, topic: `chats/${id}`, after: 0, seen })
    for (let n = 1; n <= before; n++) await send(`message ${n}`)
    await waitFor(() => seen.length === before, signal)
    say(`gus wrote ${before} messages; hal saw each as it was written`)
    listening.close()

    await Promise.all(Array.from({ length: missed }, (_, n) => send(`message ${before + n + 1}`)))
    say(`hal's connection dropped, and gus wrote ${missed} more at once`)
    const last = seen.at(-1)!.seq
    const again = await listen(context, { token: hal.token, topic: `chats/${id}`, after: last, seen })
    await waitFor(() => seen.length >= before + missed, signal)
    await send('welcome back')
    await waitFor(() => seen.at(-1)?.text === 'welcome back', signal)
    again.close()
    say(`hal came back with number ${last}, was given ${missed} messages and then what came`)
    expect(
      seen.every(({ seq }, at) => seq === at + 1),
      'A message was missed, or came twice, or out of order.',
    )

    await hal.post(`/v1/chats/${id}/read`, { seq: seen.length })
    say(
      `${seen.length} messages, numbered 1 to ${seen.at(-1)!.seq}; searching for “welcome” finds ${await find('welcome')}`,
    )
    return `${seen.length} messages, each once and in order, ${missed} of them after a drop`
  },
}

interface Listening {
  close(): void
}

/** Resolves when the topic is followed. */
function listen(
  { capstan, signal }: Context,
  given: { token: string; topic: string; after: number; seen: Message[] },
): Promise<Listening> {
  const { token, topic, after, seen } = given
  return new Promise((resolve, reject) => {
    const socket = new WebSocket(`${capstan.url.replace('http', 'ws')}/v1/live`)
    signal.addEventListener('abort', () => socket.close(), { once: true })
    socket.onopen = () => {
      for (const frame of [
        { type: 'auth', token },
        { type: 'subscribe', topic, after },
      ])
        socket.send(JSON.stringify(frame))
    }
    socket.onmessage = message => {
      const frame = JSON.parse(message.data)
      if (frame.type === 'subscribed') resolve(socket)
      if (frame.type === 'events') for (const event of frame.events) seen.push(event.data)
      if (frame.type === 'error') reject(new TourError(`/v1/live said ${frame.code}: ${frame.message}`))
    }
    socket.onerror = () => reject(new TourError('/v1/live could not be reached.'))
  })
}

async function waitFor(isSo: () => boolean, signal: AbortSignal) {
  const deadline = performance.now() + patienceMs
  while (!isSo()) {
    if (performance.now() > deadline) throw new TourError('A message did not arrive.')
    await pause(pollMs, signal)
  }
}
