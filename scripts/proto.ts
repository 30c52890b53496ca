/** `npm run proto` checks the contracts in proto/ and makes server/proto/ of them, from what is installed alone. */
import { execFileSync } from 'node:child_process'
import path from 'node:path'

const root = path.resolve(import.meta.dirname, '..')
const bin = path.join(root, 'node_modules/.bin')
export const generatedFolder = 'server/proto'

/** @param base the folder in which `server/proto` is made anew */
export function generate(base: string) {
  runBuf('lint', 'proto')
  runBuf('generate', 'proto', '--template', 'proto/buf.gen.yaml', '--output', base)
}

/** Why the contracts cannot be compiled here, where that is so: buf has programs for some platforms only. */
export function whyNot(): string | undefined {
  try {
    runBuf('--version')
    return undefined
  } catch (error) {
    return `buf does not run here: ${(error as Error).message.split('\n')[0]}`
  }
}

function runBuf(...args: string[]) {
  // It looks for its plugin, and that for `node`, on the path.
  const env = { ...process.env, PATH: `${bin}:${process.env.PATH ?? ''}` }
  execFileSync(path.join(bin, 'buf'), args, { cwd: root, env, stdio: ['ignore', 'pipe', 'inherit'] })
}

if (import.meta.main) generate(root)
