# Begins each script that runs in the namespace, as root of it: memory to work in, and a handler for arm64 programs
# which this namespace alone has (binfmt_misc of a user namespace: Linux 6.7).
set -eu
# An ordinary user's search path may lack the administrator's programs.
export PATH="$PATH:/usr/sbin:/sbin"
step() { echo "@step $*"; }
mount -t tmpfs -o mode=755,size="$MEMORY" tmpfs "$WORK"
export TMPDIR="$WORK/tmp"
mkdir -m 1777 "$TMPDIR"
if [ -n "$EMULATOR" ]; then
  mkdir "$WORK/binfmt"
  mount -t binfmt_misc binfmt_misc "$WORK/binfmt"
  # An ELF file of 64 bits, little-endian, of type ET_EXEC or ET_DYN, for EM_AARCH64. F: the kernel opens the
  # emulator now, so that programs behind a chroot find it.
  printf '%s' ':arm64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:'"$EMULATOR:F" \
    >"$WORK/binfmt/register"
fi
