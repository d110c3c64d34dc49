# A Docker engine of a test's own. For scripts that have `say` and a folder $work; `engine` is its process, or empty.
engine="" group=""

start_engine() { # start_engine FOLDER [FLAG…], of dockerd: its images stay in FOLDER when it ends
  mkdir -p "$work/engine"
  # At a socket of its own: another test may have an engine at the same time.
  export DOCKER_HOST="unix://$work/engine/socket"
  dockerd --host "$DOCKER_HOST" --data-root "$1" --exec-root "$work/engine/run" --pidfile "$work/engine/pid" "${@:2}" >"$work/engine.log" 2>&1 &
  engine=$!
  for _ in $(seq 240); do
    docker info >/dev/null 2>&1 && return
    kill -0 "$engine" 2>/dev/null || break
    sleep 0.5
  done
  tail -n 5 "$work/engine.log" >&2
  say "dockerd does not start: run as root, or start Docker yourself" >&2
  exit 1
}

# The same, whose containers have a tenth of the processor while others want all of it: `nice` does not reach into their
# groups. With less, containerd would not start in the time that dockerd gives it.
start_modest_engine() { # start_modest_engine FOLDER [FLAG…]
  local place=/sys/fs/cgroup/cpu weight=cpu.shares tenth=100
  [ -e "$place" ] || place=/sys/fs/cgroup weight=cpu.weight tenth=10
  group=texto-$$
  if { mkdir "$place/$group" && echo "$tenth" >"$place/$group/$weight"; } 2>/dev/null; then
    start_engine "$@" --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent "/$group"
  else
    start_engine "$@"
  fi
}

end_engine() {
  kill "$engine" 2>/dev/null && wait "$engine" 2>/dev/null || true
  umount "$work"/engine/run/netns/* 2>/dev/null || true
  [ -z "$group" ] || rmdir /sys/fs/cgroup/{,*/}"$group" 2>/dev/null || true
}
