import { detectLanguages, makeSandbox } from '../../server/services/runner/sandbox/index.ts'

/** Why programs cannot be run on this machine, or false: for a test's `skip`, so that the reason is printed. */
export async function whyNoPrograms(wanted: string[]): Promise<string | false> {
  const languages = await detectLanguages()
  const absent = wanted.filter(id => !languages.some(language => language.id === id))
  if (absent.length > 0) return `not on this machine: ${absent.join(', ')}`
  const sandbox = await makeSandbox({ warm: 0 })
  await sandbox.close()
  return !sandbox.facts.available && sandbox.facts.sentence
}
