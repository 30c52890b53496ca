-- Up Migration

alter table identity.users drop constraint users_role_check;
alter table identity.users add constraint users_role_check check (role in ('user', 'banker', 'admin'));
alter table identity.users add column full_name text;

-- Down Migration

alter table identity.users drop column full_name;
update identity.users set role = 'user' where role = 'banker';
alter table identity.users drop constraint users_role_check;
alter table identity.users add constraint users_role_check check (role in ('user', 'admin'));
