import assert from 'node:assert/strict'
import { test } from 'node:test'
import { makeTurns, type Waiting } from './turns.ts'

interface Named extends Waiting {
  name: string
}

const light = (name: string): Named => ({ name, weight: 1, urgent: false })
const heavy = (name: string): Named => ({ name, weight: 5, urgent: false })
const urgent = (name: string): Named => ({ name, weight: 1, urgent: true })

function lineUp(items: Named[], passedMax = 2) {
  const turns = makeTurns<Named>({ passedMax })
  for (const item of items) turns.add(item)
  const next = (room: number, only?: 'urgent') => turns.next(room, only)?.name
  return { turns, next }
}

test('what is urgent goes first, the rest as it came', () => {
  const { next } = lineUp([light('first'), light('second'), urgent('urgent')])
  assert.deepEqual([next(1), next(1), next(1), next(1)], ['urgent', 'first', 'second', undefined])
})

test('what is light passes what is too heavy for now, until it was passed too often', () => {
  const { next } = lineUp([heavy('heavy'), light('one'), urgent('two'), urgent('three')])
  assert.deepEqual([next(1), next(1)], ['two', 'three'])
  assert.equal(next(1), undefined, 'nobody passes it any more')
  assert.equal(next(1, 'urgent'), undefined)
  assert.deepEqual([next(5), next(1)], ['heavy', 'one'])
})

test('where only what is urgent may go, the rest stays', () => {
  const { turns, next } = lineUp([light('first'), urgent('urgent'), light('second')])
  assert.deepEqual([next(5, 'urgent'), next(5, 'urgent')], ['urgent', undefined])
  assert.equal(turns.length, 2)
  const overdue = lineUp([{ ...urgent('heavy'), weight: 5 }, urgent('one'), light('two')], 1)
  assert.deepEqual([overdue.next(1, 'urgent'), overdue.next(1), overdue.next(5, 'urgent')], ['one', undefined, 'heavy'])
})
