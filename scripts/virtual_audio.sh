#!/bin/sh
# Sound devices on a Linux machine that has none: a PulseAudio of its own with null sinks, and ALSA devices that lead there.
#
#   virtual_audio.sh start DIR     starts it in DIR (made if missing) and prints what to export, for eval
#   virtual_audio.sh stop DIR      ends it and removes DIR
#   virtual_audio.sh run COMMAND   runs a command with it, in a temporary folder
#
# The devices: moshi_mic hears what is played into the sink micsrc (paplay --device=micsrc); what moshi_speaker plays can be
# heard at speaker.monitor (parec --device=speaker.monitor, or the device moshi_echo); moshi_spare is another. The default is
# moshi_mic with moshi_speaker. In the environment that is printed:
#
#   virtual_audio.sh unplug        takes the loudspeaker away
#   virtual_audio.sh plug          brings it back
set -eu

usage() {
  sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p;}' "$0" >&2
  exit 2
}

# Without rewinds a null sink keeps time from its first sample on, instead of up to two seconds later.
sink() { printf 'module-null-sink sink_name=%s rate=24000 channels=1 norewinds=1' "$1"; }

# PulseAudio moves the streams of a sink that vanishes to the default sink, the first: not the microphone's, but a spare one,
# which is suspended, so that the stream stands still as that of a device does that was unplugged.
start() {
  mkdir -p "$1/run" "$1/home"
  dir=$(cd "$1" && pwd)
  chmod 700 "$dir/run" "$dir/home"
  echo 'autospawn = no' >"$dir/client.conf"
  cat >"$dir/alsa.conf" <<END
pcm.moshi_speaker { type asym playback.pcm { type pulse device speaker } }
pcm.moshi_mic { type asym capture.pcm { type pulse device mic } }
pcm.moshi_echo { type asym capture.pcm { type pulse device speaker.monitor } }
pcm.moshi_spare { type asym playback.pcm { type pulse device spare } }
pcm.!default {
  type asym
  playback.pcm { type pulse device speaker }
  capture.pcm { type pulse device mic }
}
END
  environment "$dir"
  HOME="$dir/home" pulseaudio -n --daemonize=yes --exit-idle-time=-1 --log-target="file:$dir/pulseaudio.log" \
    -L module-native-protocol-unix -L "$(sink spare)" -L "$(sink speaker)" -L "$(sink micsrc)" \
    -L 'module-remap-source master=micsrc.monitor source_name=mic' 2>"$dir/error.log" ||
    { cat "$dir/error.log" "$dir/pulseaudio.log" >&2; return 1; }
  pactl suspend-sink spare 1
}

# PulseAudio and ALSA find everything by these, and leave the configuration of the user alone.
environment() {
  export XDG_RUNTIME_DIR="$1/run" ALSA_CONFIG_PATH="$1/alsa.conf"
  export PULSE_CLIENTCONFIG="$1/client.conf" PULSE_COOKIE="$1/home/cookie"
  unset PULSE_SERVER PULSE_RUNTIME_PATH PULSE_SINK PULSE_SOURCE DBUS_SESSION_BUS_ADDRESS
}

stop() {
  dir=$(cd "$1" && pwd)
  environment "$dir"
  pulseaudio --kill 2>/dev/null || :
  rm -rf "$dir"
}

case ${1-} in
  start | stop)
    [ $# -eq 2 ] || usage
    "$1" "$2"
    if [ "$1" = start ]; then
      for name in XDG_RUNTIME_DIR ALSA_CONFIG_PATH PULSE_CLIENTCONFIG PULSE_COOKIE; do
        eval "value=\$$name"
        # shellcheck disable=SC2154 # by eval
        printf "export %s='%s'\n" "$name" "$value"
      done
    fi
    ;;
  unplug)
    pactl unload-module "$(pactl list short modules | sed -n 's/^\([0-9]*\).*sink_name=speaker .*/\1/p')"
    ;;
  plug)
    # shellcheck disable=SC2046 # one argument per word
    pactl load-module $(sink speaker) >/dev/null
    ;;
  run)
    [ $# -ge 2 ] || usage
    shift
    folder=$(mktemp -d)
    trap 'stop "$folder"' EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    (start "$folder")
    environment "$folder"
    "$@"
    ;;
  *) usage ;;
esac
