import { expect, type Stop } from '../stop.ts'
import { follow } from '../support/api.ts'
import { pick } from '../support/programs.ts'
import { pad } from '../support/terminal.ts'

const countdown = {
  python: `import time
for left in (3, 2, 1):
    print(left, "…", flush=True)
    time.sleep(0.4)
print("lift-off")`,
  bash: `for left in 3 2 1; do echo "$left …"; sleep 0.4; done; echo lift-off`,
  javascript: `const wait = () => new Promise(done => setTimeout(done, 400))
for (const left of [3, 2, 1]) { console.log(left, '…'); await wait() }
console.log('lift-off')
export {}`,
}

export const live: Stop = {
  title: 'A run, followed live',
  needsSandbox: true,
  async run(context) {
    const { capstan, makeUser, say, signal } = context
    const user = await makeUser('margaret')
    const begun = performance.now()
    const { id } = await user.post<{ id: string }>('/v1/runs', pick(context, countdown))
    const arrivals: number[] = []
    const text: string[] = []
    await follow({
      base: capstan.url,
      token: user.token,
      topics: [`runs/${id}`],
      signal,
      onEvent(_topic, { type, data }) {
        const at = performance.now() - begun
        if (type === 'output') arrivals.push(at)
        if (type === 'output') text.push(data.text ?? '')
        say(
          `${pad(`${at.toFixed(0).padStart(5)} ms`, 10)} ${type === 'output' ? data.text!.trimEnd() : `(${data.status})`}`,
        )
      },
    })
    const whole = (await user.waitForEnd(id)).stdout
    expect(text.join('') === whole, 'What came over the WebSocket is not what the run printed.')
    expect(arrivals.at(-1)! - arrivals[0]! > 800, 'The output came at once rather than as it was printed.')
    return `${arrivals.length} lines came over a WebSocket as they were printed`
  },
}
