/** The usual transaction as a script of pgbench, without any HTTP. */
import { spawn } from 'node:child_process'
import { writeFile } from 'node:fs/promises'
import path from 'node:path'
import type { Sample } from '../support/measure.ts'
import type { Choice } from './load.ts'

const pgbenchClients = 32

export async function runPgbench(given: {
  url: string
  folder: string
  choice: Choice
  seconds: number
}): Promise<Sample> {
  const { url, folder, choice, seconds } = given
  const script = path.join(folder, 'transfer.sql')
  const any = choice.by === 'zipf' ? 'random_zipfian(1, :n, 1.001)' : 'random(1, :n)'
  await writeFile(
    script,
    `\\set n ${choice.accounts}
\\set a ${choice.by === 'hot' ? '1' : any}
\\set b ${any}
\\if :a = :b
\\set b :a % :n + 1
\\endif
\\set low least(:a, :b)
\\set high greatest(:a, :b)
\\set amount random(1, 100)
\\set debit -:amount
\\set low_change case when :a < :b then :debit else :amount end
\\set high_change -:low_change
begin;
insert into usual.transfers (from_account_id, to_account_id, amount) values (:a, :b, :amount) returning id;
insert into usual.entries (account_id, amount) values (:a, :debit) returning id;
insert into usual.entries (account_id, amount) values (:b, :amount) returning id;
update usual.accounts set balance = balance + :low_change where id = :low returning balance;
update usual.accounts set balance = balance + :high_change where id = :high returning balance;
commit;
`,
  )
  const args = ['-n', '-M', 'prepared', '-c', `${pgbenchClients}`, '-j', '2', '-T', `${seconds}`, '-f', script, url]
  const text = await new Promise<string>((resolve, reject) => {
    const child = spawn('pgbench', args, { stdio: ['ignore', 'pipe', 'pipe'] })
    let out = ''
    for (const stream of [child.stdout, child.stderr]) stream.on('data', chunk => (out += chunk))
    child.once('error', reject)
    child.once('exit', () => resolve(out))
  })
  const perSecond = /tps = ([\d.]+)/.exec(text)?.[1]
  if (perSecond === undefined) throw new Error(`pgbench failed:\n${text}`)
  return { perSecond: Number(perSecond) }
}

export async function hasPgbench(): Promise<boolean> {
  return new Promise(resolve => {
    spawn('pgbench', ['--version'], { stdio: 'ignore' })
      .once('error', () => resolve(false))
      .once('exit', code => resolve(code === 0))
  })
}
