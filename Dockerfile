# Runs the web page. CPU:   docker build -t lora-mixer .
#               NVIDIA:     docker build -t lora-mixer-cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
# A page that other machines reach asks for a password: docker run -e LORA_MIXER_AUTH=user:password -p 7860:7860 ...
FROM python:3.12-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN useradd --create-home artist && mkdir /loras /models /pictures && chown artist /pictures
WORKDIR /app
COPY . .
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" torch \
    && pip install --no-cache-dir '.[all]' ./assets \
    && rm -rf /app
USER artist
WORKDIR /pictures
VOLUME ["/loras", "/models", "/pictures"]
EXPOSE 7860
ENTRYPOINT ["lora-mixer"]
CMD ["ui", "--host", "0.0.0.0", "--port", "7860", "--loras", "/loras", "--models", "/models", "--out", "/pictures"]
