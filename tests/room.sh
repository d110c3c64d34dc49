# To be sourced: a room like a container's (names, /data, secrets), for the very scripts of the compose stack, in
# namespaces of their own. Each program has its own host name, /data and loopback address.

# A script that is to run in a room begins with `enter "$@"`: it goes on inside, with $root the room.
enter() {
  if [ "${1:-}" != inside ]; then
    local work
    work=$(mktemp -d)
    # shellcheck disable=SC2064 # Now, while it is known. Nothing is mounted there any more: mounts go with their namespace.
    trap "rm -rf '$work'" EXIT
    unshare --mount --net --uts --pid --fork --kill-child "$0" inside "$work"
    exit
  fi
  root=$2
  export PATH="$PATH:/usr/sbin:/sbin"
  mount -t tmpfs tmpfs "$root"
  mkdir -p "$root"/{etc/texto,run/secrets,data,proc,dev,tmp,usr,own}
  for folder in /usr /dev; do mount --rbind "$folder" "$root$folder"; done
  for folder in /bin /sbin /lib /lib64; do
    if [ -L "$folder" ]; then cp -P "$folder" "$root/"; else mkdir "$root$folder"; mount --rbind "$folder" "$root$folder"; fi
  done
  mount -t proc proc /proc
  mount --bind /proc "$root/proc"
  cp -r /etc/ld.so.cache /etc/alternatives "$root/etc/" 2>/dev/null || true # awk may be one
  echo "hosts: files" >"$root/etc/nsswitch.conf"
  chmod 1777 "$root/tmp"
  ip link set lo up
}

say() { echo "$(basename "$0" | sed 's|^|tests/|'): $*"; }
within() { chroot "$root" "$@"; }

start() { # start NAME COMMAND…: with its /data and, where there is one, its own /etc/texto; its process is $!
  mkdir -p "$root/own/$1/data"
  : >"$root/tmp/$1.log"
  chmod 666 "$root/tmp/$1.log" # nginx opens it again, as another user.
  # shellcheck disable=SC2016 # Those are the inner shell's.
  unshare --uts --mount sh -c '
    mount --bind "$0/own/$1/data" "$0/data"
    [ ! -d "$0/own/$1/texto" ] || mount --bind "$0/own/$1/texto" "$0/etc/texto"
    hostname "$1"
    shift
    exec chroot "$0" "$@"' "$root" "$@" >>"$root/tmp/$1.log" 2>&1 &
}

eventually() {
  for _ in $(seq 600); do
    if "$@" >"$root/tmp/last" 2>&1; then return; fi
    sleep 0.1
  done
  say "not within 60 s: $*: $(tail -n 3 "$root/tmp/last")"
  tail -n 5 "$root"/tmp/*.log
  exit 1
}
