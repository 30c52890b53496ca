import { expect, type Stop } from '../stop.ts'
import { type Api, makeApi } from '../support/api.ts'
import { passwordOf } from './account.ts'

interface Account {
  id: string
  balance: string
}

const deposited = 1000
const transfers = 100
const seen = 4

export const money: Stop = {
  title: 'Money',
  async run({ capstan, makeUser, signal, say }) {
    const [eve, fay] = [await makeUser('eve'), await makeUser('fay')]
    const open = (user: Api) => user.post<Account>('/v1/accounts', { currency: 'USD' })
    const [eves, fays] = [await open(eve), await open(fay)]
    say(await capstan.run(['user', 'create', 'bank', '--role', 'banker', '--password-stdin'], passwordOf('bank')))
    const login = { username: 'bank', password: passwordOf('bank') }
    const { access_token: token } = await eve.post<{ access_token: string }>('/v1/auth/login', login)
    const bank = makeApi({ base: () => capstan.url, signal, token })
    await bank.post('/v1/deposits', { to: eves.id, amount: String(deposited), currency: 'USD' })
    say(`the bank brought in ${deposited} cents for eve`)

    const begun = performance.now()
    const pay = (from: Account, to: Account, amount: number) => ({
      from: from.id,
      to: to.id,
      amount: String(amount),
      currency: 'USD',
    })
    // Each pays five and gets three back, in no order at all; fay may not have the money yet, and is told so.
    const answers = await Promise.all(
      Array.from({ length: transfers }, (_, n) =>
        n % 2 === 0
          ? eve.send<{ code?: string }>('POST', '/v1/transfers', pay(eves, fays, 5))
          : fay.send<{ code?: string }>('POST', '/v1/transfers', pay(fays, eves, 3)),
      ),
    )
    const made = answers.filter(answer => answer.status === 201).length
    const tookMs = performance.now() - begun
    say(`${transfers} transfers in both directions at once: ${made} made in ${tookMs.toFixed(0)} ms`)
    expect(
      answers.every(({ status, body }) => status === 201 || body.code === 'insufficient_funds'),
      'A transfer was refused for another reason than the balance.',
    )

    const refused = await eve.send<{ code: string; detail: string }>('POST', '/v1/transfers', pay(eves, fays, 10_000))
    expect(refused.body.code === 'insufficient_funds', 'An overdraft was not refused.')
    say(`eve pays 10000: ${refused.status} ${refused.body.code}, ${refused.body.detail}`)

    const balances = await Promise.all(
      [eve, fay].map(async (user, n) => (await user.get<Account>(`/v1/accounts/${[eves, fays][n]!.id}`)).balance),
    )
    const sum = balances.reduce((total, balance) => total + Number(balance), 0)
    expect(sum === deposited, `The balances ${balances.join(' and ')} do not add up to ${deposited}.`)
    const lines = (await eve.get<string>(`/v1/accounts/${eves.id}/statement.csv`)).trim().split('\n')
    for (const line of [lines[0]!, ...lines.slice(-seen)]) say(`  ${line.trim()}`)
    for (const line of (await capstan.run(['ledger', 'verify'])).split('\n')) say(line)
    return `${made} transfers at once; ${balances.join(' + ')} = ${deposited}, and the books are right`
  },
}
