// Array parameters are written here, not by `pg`, which takes three times as long: at thousands of rows a batch that
// shows.

type Plain = number | bigint | string | boolean | null | undefined

/** Of numbers, ids and whatever else needs no quotes. */
export function toArray<T = Plain>(items: readonly T[], pick: (item: T) => Plain = item => item as Plain): string {
  let text = '{'
  for (let index = 0; index < items.length; index++) {
    if (index > 0) text += ','
    text += pick(items[index]!) ?? 'NULL'
  }
  return `${text}}`
}

export function toTimeArray<T>(items: readonly T[], pick: (item: T) => Date): string {
  return toArray(items, item => `"${pick(item).toISOString()}"`)
}

export function toTextArray<T>(items: readonly T[], pick: (item: T) => string | null): string {
  return toArray(items, item => {
    const text = pick(item)
    if (text === null) return 'NULL'
    return /["\\]/.test(text) ? `"${text.replace(/["\\]/g, '\\$&')}"` : `"${text}"`
  })
}
