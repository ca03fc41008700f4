// Runs in the page, so it must not use anything from outside of itself.

/** Before the page's own script: the microphone plays the recording, and what is saved can be had as text. */
export function prepare(wav: string, webCodecs: boolean): void {
  // The empty page before it has no microphone to replace.
  if (!navigator.mediaDevices) return;
  if (!webCodecs) {
    for (const name of ["AudioEncoder", "AudioDecoder"]) Reflect.deleteProperty(window, name);
  }
  navigator.mediaDevices.getUserMedia = async () => {
    const context = new AudioContext();
    const bytes = Uint8Array.from(atob(wav), (letter) => letter.charCodeAt(0));
    const source = context.createBufferSource();
    source.buffer = await context.decodeAudioData(bytes.buffer);
    const destination = context.createMediaStreamDestination();
    source.connect(destination);
    source.start();
    return destination.stream;
  };
  const create = URL.createObjectURL;
  URL.createObjectURL = (content: Blob) => {
    const reader = new FileReader();
    reader.onload = () => {
      (window as unknown as { saved: string }).saved = String(reader.result).replace(/^[^,]*,/, "");
    };
    reader.readAsDataURL(content);
    return create(content);
  };
}
