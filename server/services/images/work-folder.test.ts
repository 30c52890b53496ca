import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { atEnd } from '../../../test/support/at-end.ts'
import { makeWorkFolder } from './work-folder.ts'

const parent = await mkdtemp(path.join(tmpdir(), 'capstan-work-'))
atEnd(() => rm(parent, { recursive: true, force: true }))

test('a process begins with an empty folder, and leaves alone what is of another machine', async () => {
  const other = await makeWorkFolder(parent, 'other')
  await writeFile(path.join(other, 'made'), 'x')
  const own = await makeWorkFolder(parent, 'own')
  assert.notEqual(own, other)
  await writeFile(path.join(own, 'left'), 'x')
  assert.equal(await makeWorkFolder(parent, 'own'), own)
  assert.ok(existsSync(path.join(other, 'made')))
  assert.ok(!existsSync(path.join(own, 'left')))
})

test('the folders of processes of this machine that died are removed', async () => {
  const folderOf = (pid: number) => path.join(parent, `${pid}@own`)
  const dead = spawnSync('/bin/true').pid
  for (const pid of [dead, process.ppid]) await writeFile(folderOf(pid), 'x')
  await makeWorkFolder(parent, 'own')
  assert.ok(!existsSync(folderOf(dead)))
  assert.ok(existsSync(folderOf(process.ppid)))
})
