// Other echo cancellers with one face, for benchmarks/echo_peers.py: 10 ms of 24 kHz mono float at a time.
// Built with -DWEBRTC or -DSPEEX, a library each.

#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

constexpr int kRate = 24000;
constexpr int kBlock = kRate / 100;

#ifdef WEBRTC
#include <webrtc/common.h>
#include <webrtc/modules/audio_processing/include/audio_processing.h>

struct Peer {
  std::unique_ptr<webrtc::AudioProcessing> apm;

  Peer() {
    // As PulseAudio sets it up, but for what is not echo cancellation.
    webrtc::Config config;
    config.Set<webrtc::ExtendedFilter>(new webrtc::ExtendedFilter(true));
    config.Set<webrtc::DelayAgnostic>(new webrtc::DelayAgnostic(true));
    apm.reset(webrtc::AudioProcessing::Create(config));
    const webrtc::StreamConfig stream(kRate, 1);
    apm->Initialize(webrtc::ProcessingConfig{{stream, stream, stream, stream}});
    auto* echo = apm->echo_cancellation();
    echo->enable_drift_compensation(false);
    echo->set_suppression_level(webrtc::EchoCancellation::kHighSuppression);
    echo->Enable(true);
  }

  void process(const float* heard, const float* played, float* clean, int delay) {
    const webrtc::StreamConfig stream(kRate, 1);
    std::vector<float> aside(kBlock);
    float* nowhere = aside.data();
    apm->ProcessReverseStream(&played, stream, stream, &nowhere);
    apm->set_stream_delay_ms(delay);
    apm->ProcessStream(&heard, stream, stream, &clean);
  }
};
#endif

#ifdef SPEEX
#include <speex/speex_echo.h>
#include <speex/speex_preprocess.h>

struct Peer {
  SpeexEchoState* echo;
  SpeexPreprocessState* preprocess;

  Peer() {
    // It looks for no delay: its filter has to be as long as that and the room.
    echo = speex_echo_state_init(kBlock, 7 * kRate / 10);
    int rate = kRate;
    speex_echo_ctl(echo, SPEEX_ECHO_SET_SAMPLING_RATE, &rate);
    preprocess = speex_preprocess_state_init(kBlock, rate);
    int off = 0;
    speex_preprocess_ctl(preprocess, SPEEX_PREPROCESS_SET_DENOISE, &off);
    speex_preprocess_ctl(preprocess, SPEEX_PREPROCESS_SET_ECHO_STATE, echo);
  }

  ~Peer() {
    speex_preprocess_state_destroy(preprocess);
    speex_echo_state_destroy(echo);
  }

  static int16_t whole(float sample) {
    return static_cast<int16_t>(std::lround(std::fmin(std::fmax(32768 * sample, -32768.f), 32767.f)));
  }

  void process(const float* heard, const float* played, float* clean, int) {
    int16_t in[kBlock], reference[kBlock], out[kBlock];
    for (int i = 0; i < kBlock; i++) in[i] = whole(heard[i]), reference[i] = whole(played[i]);
    speex_echo_cancellation(echo, in, reference, out);
    speex_preprocess_run(preprocess, out);
    for (int i = 0; i < kBlock; i++) clean[i] = out[i] / 32768.f;
  }
};
#endif

extern "C" {
Peer* peer_new() { return new Peer; }

void peer_delete(Peer* peer) { delete peer; }

// `delay` in ms, for those who want to be told.
void peer_process(Peer* peer, const float* heard, const float* played, float* clean, int blocks, int delay) {
  for (int i = 0; i < blocks * kBlock; i += kBlock) peer->process(heard + i, played + i, clean + i, delay);
}
}
