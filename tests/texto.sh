# The program that a script tries, $TEXTO: the one that it is given, or else what cargo builds.
[ -n "${TEXTO:-}" ] || { cargo build --quiet --locked; TEXTO=target/debug/texto; }
TEXTO=$(realpath "$TEXTO")
export TEXTO
