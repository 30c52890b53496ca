-- Up Migration

-- Numbers are given to processes in blocks, so that a batch has its ids without asking. They fit into a JSON number.
create sequence ledger.transfer_ids as bigint increment by 20000 maxvalue 9007199254700000;
create sequence ledger.account_ids as bigint maxvalue 9007199254740991;

-- Updated by every batch: room is left in each page and no index holds what changes, so that updates stay heap-only.
-- `version` is the number of the newest entry. `moved_at` never goes back, whatever clock a process has.
create table ledger.accounts (
  id bigint primary key default nextval('ledger.account_ids'),
  owner text not null,
  owner_name text not null,
  currency text not null,
  name text not null default '',
  balance bigint not null default 0,
  pending_in bigint not null default 0 check (pending_in >= 0),
  pending_out bigint not null default 0 check (pending_out >= 0),
  floor bigint default 0,
  version bigint not null default 0,
  metadata jsonb,
  created_at timestamptz not null,
  moved_at timestamptz not null,
  closed_at timestamptz,
  check (balance - pending_out >= floor)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);

-- The system's accounts have the owner ''.
create unique index accounts_name on ledger.accounts (owner, currency, name) where closed_at is null;
create index accounts_owner on ledger.accounts (owner, id);

-- A transfer and its two entries in one row: where `from` and `to` stood after it. No foreign keys: accounts are never
-- deleted, every batch has locked those it writes about, and a check a row costs more than the row.
-- `idempotency` and `fingerprint` are halves of SHA-256 digests, of owner and key and of the request.
create table ledger.transfers (
  id bigint primary key,
  from_id bigint not null,
  to_id bigint not null,
  amount bigint not null check (amount > 0),
  from_version bigint not null,
  from_balance bigint not null,
  to_version bigint not null,
  to_balance bigint not null,
  created_at timestamptz not null,
  hold_id bigint,
  reverses_id bigint,
  idempotency uuid,
  fingerprint uuid,
  currency text not null,
  kind text not null check (kind in ('transfer', 'deposit', 'withdrawal', 'post', 'reversal')),
  made_by text not null,
  metadata jsonb,
  check (from_id <> to_id)
) with (autovacuum_vacuum_insert_scale_factor = 0.1);

create unique index transfers_from on ledger.transfers (from_id, from_version);
create unique index transfers_to on ledger.transfers (to_id, to_version);
create unique index transfers_idempotency on ledger.transfers (idempotency) where idempotency is not null;
create unique index transfers_hold on ledger.transfers (hold_id) where hold_id is not null;
create unique index transfers_reverses on ledger.transfers (reverses_id) where reverses_id is not null;

create view ledger.entries as
  select from_id as account_id, from_version as version, -amount as amount, from_balance as balance, id as transfer_id,
         to_id as other_id, currency, kind, created_at
  from ledger.transfers
  union all
  select to_id, to_version, amount, to_balance, id, from_id, currency, kind, created_at
  from ledger.transfers;

create function ledger.refuse_change() returns trigger language plpgsql as $$
begin
  raise exception 'What stands in the ledger is not changed: reverse the transfer.';
end $$;

create trigger transfers_stand before update or delete or truncate on ledger.transfers
  for each statement execute function ledger.refuse_change();

-- Money set aside. Open → posted (a transfer of the kind `post` names it), voided or expired, once.
-- `void_idempotency` and `void_fingerprint` are of the request that voided it.
create table ledger.holds (
  id bigint primary key,
  from_id bigint not null,
  to_id bigint not null,
  amount bigint not null check (amount > 0),
  currency text not null,
  status text not null default 'open' check (status in ('open', 'posted', 'voided', 'expired')),
  transfer_id bigint,
  made_by text not null,
  created_at timestamptz not null,
  expires_at timestamptz not null,
  settled_at timestamptz,
  idempotency uuid,
  fingerprint uuid,
  void_idempotency uuid,
  void_fingerprint uuid,
  metadata jsonb,
  check ((status = 'open') = (settled_at is null)),
  check ((status = 'posted') = (transfer_id is not null))
) with (fillfactor = 70);

create unique index holds_idempotency on ledger.holds (idempotency) where idempotency is not null;
create unique index holds_void_idempotency on ledger.holds (void_idempotency) where void_idempotency is not null;
create index holds_from on ledger.holds (from_id, id);
create index holds_to on ledger.holds (to_id, id);

-- The ids that a batch wrote, until they are in the chain.
create table ledger.unchained (
  first_id bigint primary key,
  last_id bigint not null,
  transfers integer not null
);

-- Each link's hash is SHA-256 over the hash before it and the digest of its transfers.
create table ledger.chain (
  seq bigint primary key,
  first_id bigint not null unique,
  last_id bigint not null,
  transfers integer not null,
  digest bytea not null,
  hash bytea not null
);

create function ledger.digest(first bigint, last bigint) returns bytea language sql stable as $$
  select sha256(convert_to(coalesce(string_agg(
    (id, from_id, to_id, amount, currency, kind, from_version, from_balance, to_version, to_balance, hold_id,
     reverses_id, idempotency, fingerprint, made_by, (extract(epoch from created_at) * 1000000)::bigint,
     metadata::text)::text, E'\n' order by id), ''), 'UTF8'))
  from ledger.transfers where id between first and last
$$;

-- How many entries an account had before an instant: its times rise with its versions, so halving finds it.
create function ledger.version_before(account bigint, instant timestamptz) returns bigint language plpgsql stable as $$
declare
  low bigint := 0;
  high bigint := (select version from ledger.accounts where id = account);
  middle bigint;
  happened timestamptz;
begin
  while low < high loop
    middle := (low + high + 1) / 2;
    select e.created_at into happened from ledger.entries e where e.account_id = account and e.version = middle;
    if happened < instant then low := middle; else high := middle - 1; end if;
  end loop;
  return low;
end $$;

-- Down Migration

drop function ledger.version_before(bigint, timestamptz);
drop function ledger.digest(bigint, bigint);
drop table ledger.chain;
drop table ledger.unchained;
drop table ledger.holds;
drop view ledger.entries;
drop table ledger.transfers;
drop function ledger.refuse_change();
drop table ledger.accounts;
drop sequence ledger.account_ids;
drop sequence ledger.transfer_ids;
