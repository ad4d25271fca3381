# shellcheck shell=bash
# shellcheck disable=SC2015,SC2154 # A && B || C on purpose; whoever includes this sets `results`
# What the scripts that run inside a booted machine share: a check is a sentence and a command.

failures=0

# Everything takes longer on an emulated machine.
patience=${PATIENCE:-1}

# Lines for whoever reads: a file, or a console on which others speak as well.
say() {
  case "$results" in
    /dev/console) printf "%s\n" "$@" | sed "s/^/CHECK: /" >/dev/console ;;
    *) printf "%s\n" "$@" | tee -a "$results" ;;
  esac
}

# check SENTENCE COMMAND…: the command's success makes the sentence true.
check() {
  local sentence=$1 output
  shift
  if output=$("$@" 2>&1); then
    say "ok      $sentence"
  else
    failures=$((failures + 1))
    say "FAILED  $sentence"
    say "        $*"
    [ -z "$output" ] || say "$(printf '%s\n' "$output" | head -20 | sed 's/^/        | /')"
  fi
}

# eventually SECONDS COMMAND…: until it succeeds; its last output where it never does.
eventually() {
  local until=$((SECONDS + $1 * patience)) output
  shift
  while ! output=$("$@" 2>&1); do
    if [ "$SECONDS" -ge "$until" ]; then
      printf 'never true: %s\n%s\n' "$*" "$output"
      return 1
    fi
    sleep 0.1
  done
}

same() { [ "$1" = "$2" ] || { printf 'expected %s, found %s\n' "$1" "$2" && return 1; }; }
differs() { [ "$1" != "$2" ] || { printf 'still %s\n' "$1" && return 1; }; }
silent() { local text && text=$("$@" 2>&1) && [ -z "$text" ] || { printf '%s\n' "$text" && return 1; }; }
refuses() { ! "$@"; }
lacks() { ! grep -q -- "$1" "$2"; }

# unit PROPERTY [UNIT]
unit() { systemctl show --value -p "$1" "${2:-agent.service}"; }
unit_is() { same "$2" "$(unit "$1" "${3:-agent.service}")"; }
unit_says() { case "$(unit "$1" "${3:-agent.service}")" in *"$2"*) ;; *) unit "$1" "${3:-agent.service}" && return 1 ;; esac; }
# pid SERVICE: of its main process, 0 where it has none.
pid() { agent status --json "$1" | sed -n 's/^ *"pid": \([0-9]*\),*$/\1/p' | tail -1; }
state_is() { agent status --json "$1" | grep -q "\"state\": \"$2\"" || { agent status && return 1; }; }
alive() { kill -0 "$1"; }
dead() { ! kill -0 "$1" 2>/dev/null || { ps -o pid,ppid,stat,args -p "$1" && return 1; }; }
redis() { redis-cli -n "$@"; }
# stream KIND SERVICE TEXT: some entry holds it.
stream() { redis 1 XRANGE "logs:app:$2:$1" - + | grep -q -- "$3" || { redis 1 XRANGE "logs:app:$2:$1" - + | tail -30 && return 1; }; }
count() { redis 1 XRANGE "logs:app:$2:$1" - + | grep -c -- "$3" || true; }
journal() { journalctl -q -u "${2:-agent.service}" -o cat --no-pager | grep -q -- "$1" || { journalctl -q -u "${2:-agent.service}" -o cat --no-pager | tail -15 && return 1; }; }

finish() {
  if [ "$failures" -ne 0 ]; then
    say "$failures checks failed"
    journalctl -b --no-pager >"$(dirname "$results")/journal.txt" 2>&1 || true
    exit 1
  fi
  say "all checks passed"
}
