import { expect, type Stop } from '../stop.ts'
import { pad } from '../support/terminal.ts'

const hello: Record<string, string> = {
  python: 'print("Hello from Python")',
  javascript: 'console.log("Hello from JavaScript")',
  typescript: 'const greeting: string = "Hello from TypeScript"\nconsole.log(greeting)',
  bash: 'echo "Hello from Bash"',
}

export const languages: Stop = {
  title: 'Hello in every language',
  needsSandbox: true,
  async run({ languages, makeUser, say }) {
    const user = await makeUser('grace')
    const known = languages.filter(language => hello[language.id] !== undefined)
    for (const { id, name, version } of known) {
      const run = await user.run({ language: id, source: hello[id]! })
      const said = run.stdout.trim()
      expect(run.status === 'succeeded' && said === `Hello from ${name}`, `${name} ${run.status}: ${run.stderr}`)
      say(`${pad(`${name} ${version}`, 22)} ${pad(said, 22)} in ${String(run.wall_ms).padStart(3)} ms`)
    }
    return known.map(language => language.name).join(', ')
  },
}
