import { expect, type Stop } from '../stop.ts'

export const account: Stop = {
  title: 'An account',
  async run({ makeUser, say }) {
    const ada = await makeUser('ada')
    say('ada registered')
    const login = await ada.post<{ session_id: string; user: { username: string } }>('/v1/auth/login', {
      username: 'ada',
      password: passwordOf('ada'),
    })
    expect(login.user.username === 'ada', 'The login did not answer the user who logged in.')
    say(`logged in: session ${login.session_id}`)
    const wrong = await ada.send('POST', '/v1/auth/login', { username: 'ada', password: 'a guess' })
    expect(wrong.status === 401, `A wrong password was answered ${wrong.status}.`)
    say('a wrong password was refused: 401')
    return 'registered, logged in, a wrong password refused'
  },
}

export function passwordOf(username: string): string {
  return `the password of ${username}`
}
