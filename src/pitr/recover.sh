#!/bin/bash
# recover.sh: brings PostgreSQL back to @TARGET@
#
# Plan @PLAN@, made @MADE@ for cluster @CLUSTER@:
# base backup @BASE@ (ended @BASE_END@), then @SEGMENTS@ segments of the log, timeline @TIMELINE@.
# It needs `foregate` and PostgreSQL @MAJOR@ on this machine, and @DISK@ bytes free; no server of Foregate.
#
# Run it as the account that owns the data directory (usually postgres), with the application stopped:
#   ./recover.sh            does everything up to a server that waits, read-only, at the target
#   ./recover.sh promote    makes it writable, once you have looked at it
#   ./recover.sh back       puts the old data directory back
#
# It never deletes anything: the old data directory is moved aside, and `back` moves the new one aside.
set -euo pipefail

# Where things are. Set them in the environment to have them elsewhere.
DATA=${DATA:-@DATA@}                        # the data directory that is replaced
BIN=${BIN:-/usr/lib/postgresql/@MAJOR@/bin}     # PostgreSQL @MAJOR@
REPOSITORY=${REPOSITORY:-@REPOSITORY@}
IDENTITY=${IDENTITY:-@IDENTITY@}            # the age identity that opens it; empty: stored in the clear
FOREGATE=${FOREGATE:-$(command -v foregate || true)}
# How the server is stopped and started. With Debian's packages:
#   STOP='pg_ctlcluster @MAJOR@ main stop -m fast' START='pg_ctlcluster @MAJOR@ main start' ./recover.sh
STOP=${STOP:-"$BIN/pg_ctl -D $DATA -m fast -w stop"}
START=${START:-"$BIN/pg_ctl -D $DATA -l $DATA.log -W start"}
PSQL=${PSQL:-"$BIN/psql -X -d postgres"}

OLD="$DATA.before-@PLAN@"
NEW="$DATA.recovered-@PLAN@"
say() { printf '%s\n' "recover: $*"; }
die() { printf '%s\n' "recover: $*" >&2; exit 1; }

promote() {
  # Ends the recovery: the server takes writes from now on, on a timeline of its own.
  $PSQL -c 'SELECT pg_wal_replay_resume()'
  until [ "$($PSQL -At -c 'SELECT pg_is_in_recovery()')" = f ]; do sleep 1; done
  # What was for this recovery only must not speak at the next start.
  mv -- "$DATA/postgresql.auto.conf.before-recovery" "$DATA/postgresql.auto.conf"
  say 'promoted. Now: restart the server (archiving is off until then), start the application,'
  say 'and take a base backup at once: foregate pitr base-backup'
  say "the old data directory stays at $OLD until you delete it"
}

back() {
  [ -d "$OLD" ] || die "there is no $OLD"
  $STOP || true
  [ ! -e "$NEW" ] || die "$NEW exists already; move it away"
  mv -- "$DATA" "$NEW"
  mv -- "$OLD" "$DATA"
  $START
  say "the old server is back; what was recovered stays at $NEW"
}

case "${1:-}" in
  promote) promote; exit ;;
  back) back; exit ;;
  '') ;;
  *) die "unknown argument $1" ;;
esac

# 1. Everything that can be refused is refused before anything is touched.
[ -x "$FOREGATE" ] || die 'foregate was not found; set FOREGATE'
[ -x "$BIN/postgres" ] || die "PostgreSQL @MAJOR@ was not found in $BIN; set BIN"
[ ! -e "$OLD" ] || die "$OLD exists already: this script has run before; see the usage above"
free=$(($(stat -f -c '%a * %S' -- "$(dirname -- "$DATA")")))
[ "$free" -ge @DISK@ ] || die "$(dirname -- "$DATA") has $free bytes free, @DISK@ are needed"
IDENTITY_ARGS=()
[ -z "$IDENTITY" ] || IDENTITY_ARGS=(--identity "$IDENTITY")

# 2. The base backup into a new directory, and PostgreSQL's own check of every file. The old server still runs.
say 'unpacking base backup @BASE@'
"$FOREGATE" pitr unpack @BASE@ --of @CLUSTER@ --into "$NEW" --repository "$REPOSITORY" "${IDENTITY_ARGS[@]}"

# 3. The settings of the recovery: one target, an explicit timeline, archiving off until it is promoted.
RESTORE="$FOREGATE wal get %f %p --repository $REPOSITORY${IDENTITY:+ --identity $IDENTITY}"
cp -p -- "$NEW/postgresql.auto.conf" "$NEW/postgresql.auto.conf.before-recovery"
cat >> "$NEW/postgresql.auto.conf" <<SETTINGS
restore_command = '${RESTORE//\'/\'\'}'
archive_mode = 'off'
SETTINGS
cat >> "$NEW/postgresql.auto.conf" <<'SETTINGS'
@SETTINGS@
SETTINGS
touch -- "$NEW/recovery.signal"

# 4. Stop, move the old directory aside, put the new one in its place, start.
if [ -e "$DATA/postmaster.pid" ]; then
  say 'stopping the server'
  $STOP
fi
if [ -e "$DATA" ]; then
  # Configuration that stands in the data directory comes with the base backup, as it was then.
  mv -- "$DATA" "$OLD"
  say "the old data directory is now $OLD"
fi
mv -- "$NEW" "$DATA"
say 'starting the recovery'
$START

# 5. Watch. A server that gives up is gone; one that waits at the target says that it is paused.
misses=0
while :; do
  paused=$($PSQL -At -c 'SELECT pg_is_wal_replay_paused()' 2>/dev/null || true)
  [ "$paused" != t ] || break
  # It needs a moment to be there at all.
  if "$BIN/pg_ctl" -D "$DATA" status > /dev/null; then misses=0; else misses=$((misses + 1)); fi
  [ "$misses" -lt 10 ] || die 'the server gave up; its log says why. To go back: ./recover.sh back'
  sleep 1
done
say 'the server waits at the target, read-only. Look at it:'
$PSQL -c 'SELECT pg_last_xact_replay_timestamp() AS "last transaction", pg_last_wal_replay_lsn() AS "position"'
say 'right?  ./recover.sh promote     wrong?  ./recover.sh back'
